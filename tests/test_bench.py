"""The bench measures what it says: counts, floors, ratios, results, and what moves between devices.

No times are asserted: they belong to a machine.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bench import __main__ as command_line
from bench import floor, gamma, machine, published, record, topk
from bench.sides import BenchError, Side, alternate, one_by_one, turns
from jaxfuse.ops import align

RATES = {
    "device": "Some Chip 9",
    "platform": "cpu",
    "operations_per_second": {"float32": 1e9},
    "copy_bytes_per_second": 1e8,
}


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_matrix_product_is_two_operations_a_multiply_add() -> None:
    count = floor.operations(lambda a, b: a @ b, shape(5, 7), shape(7, 11))
    assert count == (2 * 5 * 7 * 11, 0)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_counts_its_taps_and_channels(groups: int) -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    count = floor.operations(convolve, shape(2, 5, 6, 8), shape(3, 3, 8 // groups, 12))
    assert count == (2 * (2 * 5 * 6 * 12) * 9 * (8 // groups), 0)


def test_loops_count_as_often_as_they_run_and_branches_as_the_cheaper_one() -> None:
    def loop(x: jax.Array, stacked: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, w: (jnp.tanh(carry @ w), None), x, stacked)[0]

    assert floor.operations(loop, shape(2, 3), shape(6, 3, 3)) == (6 * 2 * 2 * 3 * 3, 6 * 6)

    def branch(x: jax.Array) -> jax.Array:
        return lax.cond(x[0] > 0, lambda x: x * 2.0 + x, lambda x: x * 2.0, x)

    assert floor.operations(branch, shape(10)) == (0, 10)


def test_a_gradient_costs_three_products_where_the_forward_costs_one() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x @ w @ w))

    w, x = shape(8, 8), shape(4, 8)
    forward = floor.operations(loss, w, x)
    both = floor.operations(jax.value_and_grad(loss), w, x)
    product = 2 * 4 * 8 * 8
    # Two products forward; backward one for each use of w and one for what precedes it.
    assert forward.matrix == 2 * product
    assert both.matrix == (2 + 3) * product
    assert both.other > forward.other == 2 * 4 * 8


def test_the_floor_is_the_later_of_computing_and_moving() -> None:
    by_operations = floor.floor(6e9, 1e8, 2e9, 1e8)
    assert by_operations["seconds"] == by_operations["seconds_by_operations"] == 3.0
    assert by_operations["seconds_by_bytes"] == 1.0
    assert by_operations["bound"] == "operations"
    by_bytes = floor.floor(1e9, 4e8, 2e9, 1e8)
    assert (by_bytes["seconds"], by_bytes["bound"]) == (4.0, "bytes")
    with pytest.raises(ValueError, match="nothing to do"):
        floor.floor(0, 0, 1e9, 1e9)
    with pytest.raises(ValueError, match="measure first"):
        floor.floor(1, 1, 0, 1e9)


def test_sweeps_move_the_maps_they_name() -> None:
    single, half = np.dtype("float32"), np.dtype("float16")
    first = SimpleNamespace(reads=("visible",), writes={"x": (8, half)})
    second = SimpleNamespace(reads=("x", "infrared"), writes={"image": (1, single)})
    moved = floor.sweep_bytes(SimpleNamespace(passes=(first, second)), 5, 7)
    # Luma in, 8 halves out; 8 halves and infrared in, an image out.
    assert moved == 5 * 7 * (4 + 16 + 16 + 4 + 4)


def test_a_ratio_is_a_median_over_rounds_that_both_ran() -> None:
    found = record.ratio([8.0, 30.0, 10.0, 99.0], [4.0, 10.0, 2.0])
    assert found["per_round"] == [2.0, 3.0, 5.0]
    assert (found["lowest"], found["median"], found["highest"]) == (2.0, 3.0, 5.0)
    # Not the quotient of the medians, which a drift of the machine's speed would spoil.
    assert record.ratio([1.0, 20.0, 3.0], [1.0, 10.0, 30.0])["median"] == 1.0
    with pytest.raises(ValueError, match="at least one run"):
        record.ratio([1.0], [])


@pytest.mark.parametrize(
    ("measured", "at_least", "final", "met"),
    [
        (2.0, True, True, False),
        (3.0, True, True, True),
        (3.5, False, True, False),
        (3.0, False, True, True),
        (9.0, False, False, None),
    ],
)
def test_a_goal_says_whether_it_was_reached(
    measured: float, at_least: bool, final: bool, met: bool | None
) -> None:
    assert record.goal("x", 3.0, measured, at_least, final)["met"] is met


def test_turns_alternate_direction_and_respect_limits() -> None:
    assert turns([None, 1, None], 3) == [[0, 1, 2], [2, 0], [0, 2]]


WORK = """
import time
from bench.sides import Work

def sleeper(options):
    held = bytearray(b"x") * options["bytes"]
    def run():
        time.sleep(options["seconds"])
    def finish():
        return {"held": len(held), "operations": 1e6, "bytes": 1e3}
    print("libraries may print")
    return Work(run, warm=options["warm"], finish=finish)

def broken(options):
    raise RuntimeError("no")
"""


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes sides whose work sleeps and holds memory."""
    (tmp_path / "sleeping_work.py").write_text(WORK, encoding="utf8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(name: str, held: int = 0, warm: bool = False, rounds: int | None = None) -> Side:
        options = {"seconds": 0.01, "bytes": held, "warm": warm}
        return Side(name, "sleeping_work:sleeper", options, rounds)

    return make


def test_sides_have_their_own_processes_and_peaks(side: Any) -> None:
    small, large = side("small", warm=True), side("large", held=300_000_000, rounds=1)
    alternate([small, large], 3)
    assert (len(small.report["seconds"]), len(large.report["seconds"])) == (3, 1)
    assert all(seconds >= 0.01 for seconds in small.report["seconds"])
    assert small.report["first_call_seconds"] >= 0.01
    assert large.report["first_call_seconds"] is None
    assert large.report["facts"]["held"] == 300_000_000
    difference = large.report["peak_rss_bytes"] - small.report["peak_rss_bytes"]
    assert 280_000_000 < difference < 320_000_000


def test_a_started_process_is_measured_itself() -> None:
    """Not the one that starts it, whose imports alone take more than a bare Python."""

    def started(code: str) -> Side:
        return Side(code, "bench.start:process", {"words": ["-c", code], "fuses": False})

    bare, large = started("pass"), started("x = bytearray(b'x') * 200_000_000")
    busy = started("import time\nwhile time.process_time() < 0.3: pass")
    alternate([bare, large, busy], 2)
    assert 1_000_000 < bare.report["peak_rss_bytes"] < 30_000_000
    difference = large.report["peak_rss_bytes"] - bare.report["peak_rss_bytes"]
    assert 190_000_000 < difference < 210_000_000
    assert all(0.3 <= seconds < 1.0 for seconds in busy.report["cpu_seconds"])
    with pytest.raises(BenchError, match="its process ended with code 1"):
        alternate([started("raise SystemExit(3)")], 1)


def test_a_side_that_fails_is_named(side: Any) -> None:
    good, bad = side("good"), Side("bad", "sleeping_work:broken", {})
    with pytest.raises(BenchError, match="bad: its process ended with code 1"):
        alternate([good, bad], 1)
    good = side("good")
    failed = one_by_one([Side("bad", "sleeping_work:broken", {}), good], 2)
    assert len(failed) == 1
    assert failed[0].startswith("Not measured: bad:")
    assert len(good.report["seconds"]) == 2


@pytest.fixture
def result(side: Any, tmp_path: Path) -> dict[str, Any]:
    """A whole result of two sides."""
    run = record.Run("python -m bench", tmp_path / "out", tmp_path, tiny=False)
    sides = [side("a"), side("b")]
    sides[1].options["floor_of"] = "a"
    found = record.measure(run, "sleeping", "sleeps", sides, 2, {}, RATES)
    record.compare(found, "a", "b")
    return found


def test_a_result_is_whole_and_survives_its_file(result: dict[str, Any], tmp_path: Path) -> None:
    assert record.problems(result) == []
    a, b = result["sides"]["a"], result["sides"]["b"]
    assert a["floor"]["seconds"] == 1e6 / 1e9
    assert b["gap"] == pytest.approx(b["median_seconds"] / 1e-3)
    assert result["ratios"]["a / b"]["time"]["per_round"] == [
        x / y for x, y in zip(a["seconds"], b["seconds"], strict=True)
    ]
    result["agreement"]["worst"] = float("nan")
    path = record.write(result, tmp_path / "out")
    assert path.name == "sleeping-cpu.json"
    read = json.loads(path.read_text(encoding="utf8"), parse_constant=pytest.fail)
    assert record.problems(read) == []
    assert read["agreement"]["worst"] == "nan"
    assert read["sides"]["a"]["seconds"] == a["seconds"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == [path.name]
    assert any("a / b" in line for line in record.lines(result))
    tiny = record.write({**result, "tiny": True}, tmp_path / "out")
    assert tiny.name == "sleeping-cpu-tiny.json"


def test_what_is_missing_or_wrong_in_a_result_is_named(
    result: dict[str, Any], tmp_path: Path
) -> None:
    def with_change(change: Any) -> list[str]:
        broken = copy.deepcopy(result)
        change(broken)
        return record.problems(broken)

    assert with_change(lambda r: r.pop("machine")) == ["no machine"]
    assert with_change(lambda r: r.update(extra=1)) == ["unknown extra"]
    assert with_change(lambda r: r.update(goals={})) == ["goals is a dict"]
    assert with_change(lambda r: r.update(format=0)) == ["format 0, not 1"]
    assert with_change(lambda r: r["machine"].pop("cores")) == ["machine has no cores"]
    for seconds in ([], [0.0], [float("inf")]):
        assert (
            "its seconds are"
            in with_change(lambda r, s=seconds: r["sides"]["a"].update(seconds=s))[0]
        )
    assert "not the median" in with_change(lambda r: r["sides"]["a"].update(median_seconds=9.0))[0]
    assert "go together" in with_change(lambda r: r["sides"]["a"].pop("gap"))[0]
    assert "not there" in with_change(lambda r: r["ratios"].update({"a / c": {}}))[0]
    assert "needs what" in with_change(lambda r: r["goals"].append({"what": "x"}))[0]
    with pytest.raises(ValueError, match="no sides"):
        record.write({k: v for k, v in result.items() if k != "sides"}, tmp_path)
    assert record.compare(result, "a", "absent") == {}


def test_committed_results_are_whole_and_name_no_folder(repo: Path) -> None:
    wrong = {}
    for path in sorted((repo / "bench" / "results").glob("*.json")):
        text = path.read_text(encoding="utf8")
        found = record.problems(json.loads(text))
        found += [f"names {place}" for place in re.findall(r"(?<![\w.>])/\w+/[\w./]*", text)]
        if "-tiny" in path.name:
            found.append("is of a tiny run")
        if "+" in json.loads(text)["versions"]["commit"]:
            found.append("was measured with changes that no commit holds")
        if found:
            wrong[path.name] = found
    assert wrong == {}


def test_the_busy_share_is_a_share() -> None:
    share = machine.busy_share(0.2)
    assert share is None or 0.0 <= share <= 1.0


HLO = """
ENTRY %main (p0: f32[1000,3]) -> f32[16] {
  %wide = u8[16,8,8,3]{3,2,1,0} fusion(%p0), kind=kLoop
  %rs = u8[2,8,8,3]{3,2,1,0} reduce-scatter(%wide), dimensions={0}, to_apply=%add
  %all_gather.7 = f32[128]{0} all-gather(%negated), channel_id=1, dimensions={0}
  %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%small), dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  ROOT %psum = (f32[], s32[3,5]) all-reduce(f32[] %a, s32[3,5]{1,0} %b), to_apply=%add
  %big = f32[999999]{0} fusion(%all_gather.7), kind=kLoop
}
"""


def test_exchanges_between_devices_are_read_from_a_program() -> None:
    assert topk.exchanges(HLO) == [
        ("reduce-scatter", 16 * 8 * 8 * 3),
        ("all-gather", 128),
        ("all-gather", 32),
        ("all-reduce", 15),
    ]
    assert topk.largest(topk.exchanges(HLO)) == 3072
    assert topk.largest(topk.exchanges("ROOT %x = f32[9] add(%a, %b)")) == 0


def test_the_check_tells_a_gathered_pool_from_candidates(devices: list[jax.Device]) -> None:
    mesh = Mesh(np.array(devices), ("data",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    means = jax.ShapeDtypeStruct((4096, 3), jnp.float32, sharding=rows)
    target = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=whole)

    def moved(select: Any) -> int:
        program = jax.jit(select, out_shardings=whole).lower(means, target).compile()
        return topk.largest(topk.exchanges(program.as_text()))

    assert moved(lambda m, t: align.select_top_k_sharded(m, t, 4, mesh)) == len(devices) * 4
    assert moved(lambda m, t: align.select_top_k(m, t, 4)) == 4096


def test_only_the_functions_of_a_script_are_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import no_such_package\n"
        "def double(x):\n    return np.asarray(x) * 2\n"
        "def again(x):\n    return double(double(x))\n"
        "raise RuntimeError('the script ran')\n",
        encoding="utf8",
    )
    code = published.functions(script)
    assert code["again"]([1, 2]).tolist() == [4, 8]


def test_weights_come_back_by_module(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(
        path, **{"encoder/a.weight": np.ones(2), "encoder/b/c": np.zeros(1), "d/e": np.ones(3)}
    )
    found = published.load_weights(str(path))
    assert {module: sorted(state) for module, state in found.items()} == {
        "encoder": ["a.weight", "b/c"],
        "d": ["e"],
    }
    assert found["d"]["e"].tolist() == [1, 1, 1]


def test_gamma_errors_are_those_of_the_rendered_patches() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    target, exponents = np.array([90.0, 120.0, 140.0]), np.array([0.7, 1.0, 1.9])
    rendered = 255.0 * (patches / 255.0) ** (1.0 / exponents)
    found = gamma._errors(patches, target, exponents)
    exact = np.abs(rendered.mean((0, 1, 2)) - target)
    np.testing.assert_allclose(found["error_grey_levels"], exact, atol=1e-9)
    # Levels that are whole numbers may fall to either side when truncated: channels 0 and 2 only.
    truncated = np.abs(np.floor(rendered).mean((0, 1, 2)) - target)
    np.testing.assert_allclose(
        np.array(found["error_grey_levels_as_truncated_bytes"])[[0, 2]],
        truncated[[0, 2]],
        atol=1e-2,
    )


def test_a_command_names_no_folder_and_a_device_makes_a_file_name() -> None:
    words = ["fuse", "--reference", "/some/where", "--out", "/else/where", "--repeat", "2"]
    told = command_line.command(command_line.parser().parse_args(words))
    assert told == "python -m bench fuse --reference DIR --repeat 2"
    assert machine.slug("NVIDIA H200 (80GB)") == "nvidia-h200-80gb"


def test_subjects_are_chosen_by_name() -> None:
    everything, accelerator = command_line.chosen([])
    assert everything == list(command_line.SUBJECTS)
    assert not accelerator
    assert command_line.chosen(["step", "fuse", "step"]) == (["step", "fuse"], False)
    assert command_line.chosen(["accelerator", "step"]) == (["step"], True)
    assert command_line.chosen(["accelerator"])[0] == list(command_line.ON_ACCELERATOR)
    with pytest.raises(BenchError, match="not measured on an accelerator"):
        command_line.chosen(["accelerator", "loader"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["speed"], "no subject 'speed': choose among fuse, "),
        (["topk", "--repeat", "0"], "--repeat 0"),
        (["topk", "--reference", "nowhere"], "no network.py in it"),
    ],
)
def test_a_wrong_command_says_what_to_do(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(words) == 1
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_subjects_run_from_end_to_end(tmp_path: Path) -> None:
    names = ["topk", "gamma", "synthetic", "loader", "depthwise", "dense"]
    names += ["realtime", "video", "start"]
    assert command_line.main([*names, "--tiny", "--out", str(tmp_path)]) == 0
    for name in names:
        found = json.loads((tmp_path / f"{name}-cpu-tiny.json").read_text(encoding="utf8"))
        assert record.problems(found) == []
        assert all(entry["met"] is None for entry in found["goals"])
    moved = json.loads((tmp_path / "topk-cpu-tiny.json").read_text(encoding="utf8"))["agreement"]
    assert moved["rows that one and eight devices choose differently"] == 0
