"""Plans: what is read from a compiled program, what is predicted from it, what the command says.

Most compile for the fake CPU devices. What the TPU compiler itself does is tested where it is
installed (the extra `tpu`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import tiny_network
from jaxfuse import cli, config, distributed, models
from jaxfuse.config import ConfigError
from jaxfuse.models.platform import platform
from jaxfuse.plan import arithmetic, chips, hlo, predict, programs, report, traffic
from jaxfuse.train import abstract, setup

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: the extra tpu"
)

PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,128]{1,0})}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%cut (stack: f32[5,8,128], at: s32[]) -> f32[8,128] {
  %stack = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %at = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %one = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%stack, %at, %zero.1, %zero.1)
  ROOT %flat = f32[8,128]{1,0:T(8,128)} bitcast(%one)
}

%body (p: (s32[], f32[8,128], f32[5,8,128])) -> (s32[], f32[8,128], f32[5,8,128]) {
  %p = (s32[], f32[8,128]{1,0:T(8,128)S(1)}, /*index=2*/f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %all = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%p), index=2
  %next = s32[] add(%i, %step)
  %w = f32[8,128]{1,0:T(8,128)S(1)} fusion(%all, %i), kind=kLoop, calls=%cut
  %r = f32[8,128]{1,0:T(8,128)S(1)} all-reduce(%w), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) tuple(%next, %r, %all)
}

%cond (q: (s32[], f32[8,128], f32[5,8,128])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  %q = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (x0: f32[8,128], s0: f32[5,8,128]) -> f32[8,100] {
  %zero = s32[] constant(0)
  %x0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %s0 = f32[5,8,128]{2,1,0:T(8,128)} parameter(1)
  %packed = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) tuple(%zero, %x0, %s0)
  %loop = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) while(%packed), condition=%cond, body=%body
  %y = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=1
  %g0 = (f32[8,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%y), replica_groups=[1,4]<=[4]
  %g1 = bf16[32,128]{1,0} all-gather-done(%g0)
  ROOT %z = f32[8,100]{1,0:T(8,128)} negate(%y)
}
"""
KIB = 1024
ARRAY = 8 * 128 * 4


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tiny network is a model, the folder is empty, the environment comes back."""
    monkeypatch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)
    monkeypatch.chdir(tmp_path)
    for name in (*distributed.TPU_COMPILER, "TPU_ACCELERATOR_TYPE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not os.environ[name]:
            monkeypatch.delenv(name)


# What a program's text says.


def test_loops_are_counted_as_often_as_they_run() -> None:
    program = hlo.parse(PROGRAM)
    assert program.entry == "main"
    assert list(program.loops()) == [5]
    assert program.times == {"main": 1.0, "body": 5.0, "cut": 5.0}
    assert program.fused == {"cut"}


def test_a_loop_of_unknown_length_counts_once() -> None:
    text = PROGRAM.replace("direction=LT", "direction=NE")
    program = hlo.parse(text)
    assert list(program.loops()) == [None]
    assert program.times["body"] == 1.0
    told = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    assert list(hlo.parse(text.replace("body=%body", told)).loops()) == [7]


def test_collectives_count_by_kind_and_loop() -> None:
    gather, reduce = traffic.collectives(hlo.parse(PROGRAM), 4)
    # Within pairs of chips, five times: 2 (n - 1) / n is 1.
    assert reduce == traffic.Collective("all-reduce", 5.0, 5.0 * ARRAY, 5.0 * ARRAY)
    # The result of the first half holds its operand too.
    whole = 32 * 128 * 2
    assert gather == traffic.Collective("all-gather", 1.0, whole, whole * 3 / 4)


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups={}", 16),
        ("replica_groups=[4,4]<=[16]", 4),
        ("replica_groups=[2,8]<=[4,4]T(1,0)", 8),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("use_global_device_ids=true", 16),
    ],
)
def test_who_takes_part(text: str, n: int) -> None:
    line = hlo.Instruction("r", "all-reduce", (), (), "", f", {text}, to_apply=%add")
    assert traffic.group_size(line, 16) == n


@pytest.mark.parametrize(
    ("opcode", "result", "sent"),
    [
        ("all-reduce", "f32[4]", 2 * 3 / 4 * 16),
        ("all-reduce-start", "(f32[4], bf16[2,3])", 2 * 3 / 4 * 28),
        ("all-gather", "f32[4]", 3 / 4 * 16),
        ("reduce-scatter", "f32[4]", 3 * 16),
        ("all-to-all", "(f32[4], f32[4])", 3 / 4 * 32),
        ("collective-permute", "f32[4]", 16),
        ("collective-permute-start", "(f32[4], f32[4], u32[], u32[])", 16),
    ],
)
def test_every_kind_of_collective(opcode: str, result: str, sent: float) -> None:
    shapes = result.replace("]", "]{0}")
    text = f"ENTRY %m (p: f32[4]) -> f32[4] {{\n  ROOT %c = {shapes} {opcode}(%p), x=y\n}}\n"
    (found,) = traffic.collectives(hlo.parse(text), 4)
    assert (found.count, found.link_bytes) == (1.0, sent)
    alone = traffic.collectives(hlo.parse(text), 1)
    assert alone[0].link_bytes == 0.0


def test_memory_traffic_is_that_of_hbm() -> None:
    # The loop reads a slice a turn, not the stack; the rest of it stays on the chip. At the end 100
    # columns are written as 128. Gathering writes its result, which no tile pads.
    arrays = 5 * ARRAY + (ARRAY + 8 * KIB) + ARRAY
    counter = 5 * 3 * 4
    assert traffic.memory_bytes(hlo.parse(PROGRAM)) == arrays + counter


def test_a_slice_that_is_replaced_costs_the_slice() -> None:
    text = """
%put (whole: f32[5,8,128], part: f32[1,8,128], at: s32[]) -> f32[5,8,128] {
  %whole = f32[5,8,128]{2,1,0} parameter(0)
  %part = f32[1,8,128]{2,1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %new = f32[5,8,128]{2,1,0} dynamic-update-slice(%whole, %part, %at, %at, %at)
}

ENTRY %m (a: f32[5,8,128], b: f32[1,8,128]) -> f32[5,8,128] {
  %a = f32[5,8,128]{2,1,0} parameter(0)
  %b = f32[1,8,128]{2,1,0} parameter(1)
  %i = s32[] constant(2)
  ROOT %f = f32[5,8,128]{2,1,0} fusion(%a, %b, %i), kind=kLoop, calls=%put
}
"""
    assert traffic.memory_bytes(hlo.parse(text)) == 2 * ARRAY + 4
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing")


def test_layouts_pad_to_tiles() -> None:
    shape = hlo.Shape("f32", (8, 64, 64, 1), "2,3,1,0:T(1,128)S(1)")
    assert (shape.bytes, shape.stored_bytes) == (8 * 64 * 64 * 4, 8 * 64 * 128 * 4)
    assert not shape.main_memory
    assert hlo.Shape("pred", (3, 5), "1,0").stored_bytes == 15
    assert hlo.Shape("bf16", (5, 130), "1,0:T(8,128)(2,1)").stored_bytes == 8 * 256 * 2
    assert hlo.Shape("token", ()).bytes == 0


def test_a_real_program_says_what_was_written(devices: list[jax.Device]) -> None:
    mesh = Mesh(np.array(devices[:4]), ("data",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        def block(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
            grad = jax.grad(lambda w: (part @ w).sum())(w)
            return total + lax.with_sharding_constraint(grad, whole), None

        return lax.scan(block, 0.0 * w, x.reshape(8, 3, 16, 5).swapaxes(0, 1))[0]

    traced = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole).trace(
        jax.ShapeDtypeStruct((5, 6), np.float32), jax.ShapeDtypeStruct((24, 16, 5), np.float32)
    )
    found = traffic.collectives(hlo.parse(traced.lower().compile().as_text()), 4)
    assert {each.kind for each in found} <= {"all-reduce", "all-to-all", "collective-permute"}
    reduced = next(each for each in found if each.kind == "all-reduce")
    # Inside the loop or, where XLA moves it out, once.
    assert (reduced.count, reduced.bytes) in [(3.0, 3 * 5 * 6 * 4), (1.0, 5 * 6 * 4)]
    assert arithmetic.count(traced.jaxpr.jaxpr).matrix >= 3 * 2 * 5 * 6 * 8 * 16


# Slices, times, searches.


@pytest.mark.parametrize(
    ("name", "count", "links", "hops"),
    [
        ("v5e:1x1", 1, 0, 0),
        ("v5e:2x2", 4, 2, 2),
        ("v5e:4x8", 32, 2, 10),
        ("v5e:8x16", 128, 3, 15),
        ("v6e:16x16", 256, 4, 16),
        ("v5p:2x2x1", 4, 2, 2),
        ("v5p:4x4x4", 64, 6, 6),
        ("v5p:2x4x4", 32, 3, 7),
    ],
)
def test_how_slices_are_wired(name: str, count: int, links: int, hops: int) -> None:
    where = chips.parse(name)
    assert (where.name, where.chips, where.links, where.hops) == (name, count, links, hops)


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:2x2x1", "v5p:4x4", "v6e:0x2", "v5e:axb"])
def test_a_wrong_topology_lists_the_right_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="such as v"):
        chips.parse(name)


def test_chips_agree_with_their_datasheets() -> None:
    assert set(chips.CHIPS) == set(chips.EXAMPLES)
    stated = {"v5e": (197, 16, 819, 400), "v5p": (459, 95, 2765, 1200), "v6e": (918, 32, 1638, 800)}
    for kind, (flops, memory, bandwidth, network) in stated.items():
        chip = chips.CHIPS[kind]
        assert chip.flops_per_second == flops * 1e12
        assert chip.memory_bytes == memory << 30
        assert chip.memory_bytes_per_second == bandwidth * 1e9
        assert 2 * 2 * chip.axes * chip.link_bytes_per_second == network * 1e9
        assert chips.parse(chips.EXAMPLES[kind]).chip is chip


def test_a_step_takes_the_longer_of_computing_and_moving_and_then_talks() -> None:
    where = chips.parse("v5e:2x2")
    messages = [("all-reduce", 3.0, 200e6), ("all-gather", 1.0, 100e6)]
    found = predict.times(where, 197e9, 819e7, messages)
    assert found.compute == pytest.approx(1e-3)
    assert found.memory == pytest.approx(1e-2)
    # Two links of 50 GB/s; two hops to the farthest chip, there and back for a reduction.
    assert found.network == pytest.approx(300e6 / 100e9 + (3 * 2 + 1) * 2 * chips.HOP_SECONDS)
    assert found.step == pytest.approx(1e-2 + found.network)
    assert found.bound == "memory"
    assert predict.times(where, 1.0, 1.0, messages).bound == "network"
    assert predict.times(where, 197e12, 1.0, messages).bound == "compute"
    assert predict.times(chips.parse("v5e:1x1"), 1.0, 1.0, messages).network == 0.0


@pytest.mark.parametrize("largest", [1, 7, 40, 1000, 3])
@pytest.mark.parametrize("start", [1, 8])
@pytest.mark.parametrize("told", [True, False])
def test_a_search_ends_near_the_largest_batch(largest: int, start: int, told: bool) -> None:
    fixed, each = 1000, 10
    limit = fixed + each * largest + each // 2
    asked: list[int] = []

    def needs(batch: int) -> tuple[bool, int]:
        asked.append(batch)
        fits = fixed + each * batch <= limit
        return fits, fixed + each * batch if fits or told else 0

    found = predict.largest_batch(needs, start, limit, compilations=20)
    assert len(asked) == len(set(asked)) == found.compilations
    assert found.batch <= largest < found.too_large
    assert found.too_large - found.batch <= max(1, found.batch // predict.GRAIN)


def test_a_search_keeps_to_multiples_and_to_its_limit() -> None:
    def needs(batch: int) -> tuple[bool, int]:
        assert batch % 4 == 0
        return batch <= 100, 0

    found = predict.largest_batch(needs, 8, 1000, multiple=4)
    assert found.batch <= 100 < found.too_large and found.compilations <= predict.MAX_COMPILATIONS
    none = predict.largest_batch(lambda batch: (False, 0), 8, 1000, known={8: (False, 99_000)})
    assert (none.batch, none.too_large) == (0, 1)
    short = predict.largest_batch(lambda batch: (True, 0), 1, 1000, compilations=2)
    assert (short.too_large, short.compilations) == (0, 2)


# The step that is compiled.


def test_programs_are_traced_for_the_platform_that_is_named() -> None:
    assert platform() == "cpu" and models.Compute().rematerialise
    with models.traced_for("tpu"):
        assert platform() == "tpu" and not models.Compute().rematerialise
        assert models.Compute(remat="blocks").rematerialise
    assert platform() == "cpu"


@pytest.mark.parametrize("labels", [False, True])
def test_an_abstract_batch_is_like_a_real_one(labels: bool) -> None:
    experiment = tiny_network.experiment()
    if labels:
        experiment = config.Experiment(
            method=config.SegmentationConfig(segmenter="segformer_tiny", classes=9),
            data=config.DataConfig(
                config.SourceConfig(kind="synthetic", scenes=4, height=64, width=64)
            ),
            train=config.TrainConfig(batch_size=2),
        )
    batches = setup.open_data(experiment).pipeline.batches(0)
    try:
        real = next(batches)
    finally:
        batches.close()
    expected = {name: (x.shape, x.dtype) for name, x in real.items()}
    found = abstract.batch(experiment)
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == expected


def test_each_device_gets_its_own_batch_and_share_of_the_pool() -> None:
    experiment = tiny_network.experiment()  # 8 pairs, a pool of 16, 8 kept
    grown = abstract.on_devices(experiment, 64, 2)
    assert grown.train.batch_size == 128
    assert (grown.data.external.pool, grown.data.external.keep) == (64 * 4, 64 * 2)
    least = abstract.on_devices(experiment, 64, 1)
    assert (least.data.external.pool, least.data.external.keep) == (64 * 2, 64)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.",
            (int(17.5 * 2**30), int(15.75 * 2**30)),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (20.99G) exceeds available HBM (15.75G).",
            (int(20.99 * 2**30), int(15.75 * 2**30)),
        ),
        ("RESOURCE_EXHAUSTED: too much", (0, 0)),
    ],
)
def test_what_the_compiler_needs_is_read(message: str, found: tuple[int, int]) -> None:
    assert programs.exhausted(message) == found


# The command.


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, devices: list[jax.Device], tmp_path: Path) -> Path:
    """A config file, and fake CPU devices in place of the TPUs that are asked for."""

    def mesh(kind: str, shape: tuple[int, ...]) -> Mesh:
        return Mesh(np.array(devices[: int(np.prod(shape))]), (distributed.DATA_AXIS,))

    monkeypatch.setattr(distributed, "topology_mesh", mesh)
    path = tmp_path / "tiny.json"
    experiment = tiny_network.experiment(data__external__alignment="none")
    path.write_text(config.to_json(experiment), encoding="utf8")
    return path


def test_a_plan_as_json(here: Path, capsys) -> None:
    cache = jax.config.jax_enable_compilation_cache
    given = ["plan", str(here), "--stage", "fusion", "--no-search", "--json", "-"]
    assert cli.main([*given, "--batch-per-chip", "4", "--model.remat=none"]) == 0
    assert jax.config.jax_enable_compilation_cache == cache
    out, err = capsys.readouterr()
    plan = json.loads(out)
    assert (plan["topology"], plan["chips"], plan["batch"]) == ("v5e:2x2", 4, 16)
    assert plan["compilations"] == 1 and "compiling fusion" in err
    (row,) = plan["stages"]
    assert row["stage"] == "fusion" and row["fits"] and "largest_batch" not in row
    assert row["memory"]["arguments"] > 0 and row["matrix_flops"] > 0 < row["memory_bytes"]
    kinds = {each["kind"]: each for each in row["collectives"]}
    assert kinds["all-reduce"]["link_bytes"] > 0
    expected = row["predicted"]
    assert expected["bound"] in ("compute", "memory", "network")
    assert expected["examples_per_second"] == pytest.approx(16 / expected["step_seconds"])


def test_a_plan_of_every_stage_searches(here: Path, monkeypatch, capsys) -> None:
    work = programs.Work(
        *("", 0, programs.Memory(100, 80, 70, 1000, 10), 1e9, 1e8, 1e7, (), 2, 1),
        *(1e9, 1e7, -1.0, 0.5),
    )

    def compile_step(experiment, stage, mesh, batch):
        if batch > 40:
            return programs.TooLarge(stage, batch, 0, 15 << 30, 0.0)
        return dataclasses.replace(work, stage=stage, batch_per_chip=batch)

    monkeypatch.setattr(programs, "compile_step", compile_step)
    assert cli.main(["plan", str(here), "--topology=v5e:1x2", "--json", "plan.json"]) == 0
    out = capsys.readouterr().out
    assert "stage reconstruction" in out and "stage fusion" in out
    assert "16 a step" in out and "not measured" in out
    plan = json.loads(Path("plan.json").read_text(encoding="utf8"))
    assert plan["batch_per_chip"] == tiny_network.experiment().train.batch_size
    for row in plan["stages"]:
        found = row["largest_batch"]
        assert found["batch"] <= 40 < found["too_large"]
        assert f"largest batch   {found['batch']} pairs a chip" in out
    assert "1.09 KiB of 16 GiB" in out and "1 of 2 of unknown length" in out
    assert out.count("collectives     none") == 2


def test_what_compiles_but_needs_more_than_there_is_does_not_fit(
    here: Path, monkeypatch, capsys
) -> None:
    memory = programs.Memory(1 << 30, 1 << 30, 1 << 30, 20 << 30, 0)
    work = programs.Work("fusion", 8, memory, *(1e9, 1e8, 1e7, (), 0, 0, 1e9, 1e7, -1.0, 0.5))
    assert memory.total == 21 << 30
    assert dataclasses.replace(memory, peak=9 << 30, code=1 << 30).total == 10 << 30
    monkeypatch.setattr(programs, "compile_step", lambda *given: work)
    assert cli.main(["plan", str(here), "--stage", "fusion", "--no-search"]) == 1
    assert "DOES NOT FIT: 21 GiB of 16 GiB (131%)" in capsys.readouterr().out


def test_a_stage_that_does_not_fit_fails(here: Path, monkeypatch, capsys) -> None:
    too_large = programs.TooLarge("fusion", 8, 20 << 30, 15 << 30, 1.0)
    monkeypatch.setattr(programs, "compile_step", lambda *given: too_large)
    assert cli.main(["plan", str(here), "--stage", "fusion", "--no-search"]) == 1
    assert "DOES NOT FIT: needs at least 20 GiB of 15 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--topology", "v9:2x2"], 2, ["no chip 'v9'", "v5e, v5p, v6e"]),
        (["--topology"], 2, ["--topology: name a slice"]),
        (["--batch-per-chip", "many"], 2, ["--batch-per-chip many"]),
        (["--stage", "third"], 2, ["--stage third", "reconstruction, fusion"]),
        (["--train.accumulate", "3"], 2, ["train.accumulate"]),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], code: int, words, here: Path, capsys) -> None:
    assert cli.main(["plan", str(here), *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxfuse: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_without_the_compiler_the_extra_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert cli.main(["plan", "demo", "--no-search"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert (
        'libtpu, the TPU compiler, is not installed: pip install -c constraints.txt ".[tpu]"' in err
    )


def test_sizes_for_the_eye() -> None:
    assert [report.size(n) for n in (0, 1000, 1536, 5 << 20, 3 << 40)] == [
        *("0 B", "1000 B", "1.5 KiB", "5 MiB"),
        "3.07e+03 GiB",
    ]


# The TPU compiler.


@needs_compiler
def test_slices_are_meshes_of_tpus() -> None:
    for kind, shape in (("v5e", (1, 1)), ("v5e", (2, 2)), ("v6e", (16, 16)), ("v5p", (2, 2, 1))):
        mesh = distributed.topology_mesh(kind, shape)
        assert mesh.size == np.prod(shape) and mesh.axis_names == (distributed.DATA_AXIS,)
        assert mesh.devices.flat[0].platform == "tpu"
    with pytest.raises(distributed.TopologyError, match="v5e:3x3: "):
        distributed.topology_mesh("v5e", (3, 3))


@needs_compiler
@pytest.mark.slow
def test_the_tpu_compiler_plans_the_tiny_network(tmp_path: Path, capsys) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(config.to_json(tiny_network.experiment()), encoding="utf8")
    given = ["plan", str(path), "--stage", "fusion", "--no-search", "--json", "-"]
    found = {}
    for topology in ("v5e:2x2", "v6e:4x4"):
        assert cli.main([*given, "--topology", topology]) == 0
        found[topology] = json.loads(capsys.readouterr().out)["stages"][0]
    few, many = found.values()
    assert few["matrix_flops"] == pytest.approx(many["matrix_flops"], rel=0.05)
    for row in (few, many):
        assert row["fits"] and row["unknown_loops"] == 0 and row["xla_flops"] > 0
        assert 0 < row["memory_share"] < 0.1
        assert {"all-reduce"} <= {each["kind"] for each in row["collectives"]}


@needs_compiler
@pytest.mark.slow
def test_a_batch_beyond_a_chips_memory_does_not_fit() -> None:
    experiment = tiny_network.experiment(data__external__alignment="none")
    mesh = distributed.topology_mesh("v5e", (1, 1))
    found = programs.compile_step(experiment, "fusion", mesh, 4_000_000)
    assert isinstance(found, programs.TooLarge)
    assert found.needed_bytes > found.available_bytes > 10 << 30
