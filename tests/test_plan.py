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
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import lax
from jax.experimental import topologies
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
    # The tuple of the first half holds its operand too.
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
        ("all-reduce-start", "f32[4]", 2 * 3 / 4 * 16),
        ("all-reduce-start", "((f32[4]), f32[4], u32[])", 2 * 3 / 4 * 16),
        ("all-gather", "f32[4]", 3 / 4 * 16),
        ("all-gather-start", "(f32[1], f32[4])", 3 / 4 * 16),
        ("reduce-scatter", "f32[4]", 3 * 16),
        ("reduce-scatter-start", "((f32[16]), f32[4], u32[])", 3 * 16),
        ("all-to-all", "(f32[4], f32[4])", 3 / 4 * 32),
        ("all-to-all-start", "((f32[16]), f32[16], u32[])", 3 / 4 * 64),
        ("collective-permute", "f32[4]", 16),
        ("collective-permute-start", "(f32[4], f32[4], u32[], u32[])", 16),
        ("collective-permute-start", "(u32[], u32[], u32[], u32[])", 4),
    ],
)
def test_every_kind_of_collective(opcode: str, result: str, sent: float) -> None:
    (found,) = traffic.collectives(one_line(opcode, result), 4)
    assert (found.count, found.link_bytes) == (1.0, sent)
    alone = traffic.collectives(one_line(opcode, result), 1)
    assert alone[0].link_bytes == 0.0


@pytest.mark.parametrize(
    ("opcode", "result", "operands", "sent", "moved"),
    [
        ("all-reduce-start", "(f32[4], bf16[2,3])", ("f32[4]", "bf16[2,3]"), 1.5 * 28, 2 * 28),
        ("all-gather-start", "(f32[16], f32[64])", ("f32[16]",), 0.75 * 256, 64 + 256),
        (
            *("all-gather-start", "((f32[2], f32[3]), (f32[8], f32[12]))", ("f32[2]", "f32[3]")),
            *(0.75 * 80, 20 + 80),
        ),
        ("reduce-scatter-start", "((f32[16]), f32[4], u32[])", ("f32[16]",), 3 * 16, 64 + 16),
        ("reduce-scatter", "f32[4]", ("f32[16]",), 3 * 16, 64 + 16),
        ("all-to-all-start", "((f32[16]), f32[16], u32[])", ("f32[16]",), 48, 64 + 64),
        ("collective-permute-start", "(f32[4], f32[4], u32[], u32[])", ("f32[4]",), 16, 32),
    ],
)
def test_first_halves_hold_more_than_results(
    opcode: str, result: str, operands: tuple[str, ...], sent: float, moved: float
) -> None:
    program = one_line(opcode, result, *operands)
    (found,) = traffic.collectives(program, 4)
    assert found.link_bytes == sent
    assert traffic.memory_bytes(program) == moved


def one_line(opcode: str, result: str, *operands: str) -> hlo.Program:
    """A program of one instruction and the parameters it takes; of one it does not say without."""
    given = [f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(operands)]
    names = ", ".join(f"%p{i}" for i in range(max(1, len(operands))))
    line = f"  ROOT %c = {result} {opcode}({names}), x=y"
    text = "\n".join(["ENTRY %m (p0: f32[4]) -> f32[4] {", *given, line, "}", ""])
    return hlo.parse(text.replace("]", "]{0}") if "u32[]" not in text else text)


def test_something_asynchronous_moves_what_it_calls() -> None:
    text = """
%inside (a: f32[16]) -> f32[16] {
  %a = f32[16]{0} parameter(0)
  ROOT %n = f32[16]{0} negate(%a)
}

ENTRY %m (p: f32[16]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  %s = ((f32[16]{0}), f32[16]{0}, u32[]) async-start(%p), calls=%inside
  ROOT %d = f32[16]{0} async-done(%s)
}
"""
    assert traffic.memory_bytes(hlo.parse(text)) == 2 * 64


@pytest.mark.parametrize(
    "branches",
    ["branch_computations={%small, %large}", "true_computation=%small, false_computation=%large"],
)
def test_every_branch_of_a_conditional_counts(branches: str) -> None:
    text = f"""
%small (a: f32[16]) -> f32[16] {{
  %a = f32[16]{{0}} parameter(0)
  ROOT %n = f32[16]{{0}} negate(%a)
}}

%large (b: f32[16]) -> f32[16] {{
  %b = f32[16]{{0}} parameter(0)
  %c = f32[16]{{0}} negate(%b)
  ROOT %e = f32[16]{{0}} all-reduce(%c), to_apply=%add
}}

ENTRY %m (i: s32[], p: f32[16]) -> f32[16] {{
  %i = s32[] parameter(0)
  %p = f32[16]{{0}} parameter(1)
  ROOT %d = f32[16]{{0}} conditional(%i, %p, %p), {branches}
}}
"""
    program = hlo.parse(text)
    assert traffic.memory_bytes(program) == 3 * 2 * 64
    assert traffic.collectives(program, 4)[0].count == 1.0


def test_memory_traffic_is_that_of_hbm() -> None:
    # The loop reads a slice a turn, not the stack; the rest of it stays on the chip. At the end 100
    # columns are written as 128. Gathering reads what lies on the chip and writes its result,
    # which no tile pads; its tuple holds the operand without another copy.
    arrays = 5 * ARRAY + 8 * KIB + ARRAY
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
        # v5p has a little more than its datasheet's 95 GB.
        assert 0.97 * chip.memory_bytes < chip.usable_bytes < 1.01 * chip.memory_bytes
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
        ("RESOURCE_EXHAUSTED: HBM is too small", (0, 0)),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 32.42M of 16.00M "
            "vmem.\n\nProgram hbm requirement 9.08G",
            None,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space smem.", None),
        ("INTERNAL: Mosaic failed to compile for hbm", None),
    ],
)
def test_what_the_compiler_needs_is_read(message: str, found: tuple[int, int] | None) -> None:
    assert programs.exhausted(message) == found


# The command.


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, devices: list[jax.Device], tmp_path: Path) -> Path:
    """A config file, and fake CPU devices in place of the TPUs that are asked for."""

    def mesh(kind: str, shape: tuple[int, ...], fsdp: int = 1) -> Mesh:
        return distributed.data_mesh(int(np.prod(shape)), fsdp)

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
    assert plan["compilations"] == 1
    assert err == "compiling fusion for v5e:2x2, 4 pairs on each chip (1 of 1) ...\n"
    (row,) = plan["stages"]
    assert row["stage"] == "fusion" and row["fits"] and "largest_batch" not in row
    assert row["memory"]["arguments"] > 0 and row["matrix_flops"] > 0 < row["memory_bytes"]
    kinds = {each["kind"]: each for each in row["collectives"]}
    assert kinds["all-reduce"]["link_bytes"] > 0
    expected = row["predicted"]
    assert expected["bound"] in ("compute", "memory", "network")
    assert expected["examples_per_second"] == pytest.approx(16 / expected["step_seconds"])
    # What XLA calls the peak on a CPU leaves temporaries out.
    parts = row["memory"]
    assert parts["temporaries"] > parts["arguments"] and parts["peak"] == 0
    assert row["memory_bytes_needed"] == (
        parts["arguments"]
        + parts["outputs"]
        - parts["aliased"]
        + parts["temporaries"]
        + parts["code"]
    )


def test_a_state_that_is_split_is_planned_split(here: Path, monkeypatch, capsys) -> None:
    # The tiny network's matrices are worth splitting here.
    monkeypatch.setattr(distributed.meshes, "SMALL", 16)
    given = ["plan", str(here), "--stage", "fusion", "--no-search", "--json", "-"]
    given += ["--batch-per-chip", "4"]
    found = {}
    for fsdp in (1, 4):
        assert cli.main([*given, "--train.fsdp", str(fsdp)]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["fsdp"] == fsdp
        (found[fsdp],) = plan["stages"]
    kinds = {fsdp: {each["kind"] for each in row["collectives"]} for fsdp, row in found.items()}
    assert "all-gather" in kinds[4] - kinds[1]
    experiment = tiny_network.experiment(data__external__alignment="none")
    whole, split = (found[fsdp]["memory"]["arguments"] for fsdp in (1, 4))
    shapes = jax.tree.leaves(abstract_state(experiment))
    large = sum(x.size * x.dtype.itemsize for x in shapes if x.ndim and x.size >= 16)
    assert 0.6 * large < whole - split <= 0.75 * large
    assert report.lines(plan)[0].endswith("float32, parameters split over 4")


def abstract_state(experiment: config.Experiment) -> Any:
    """Shapes of the training state."""
    _, method = setup.build(experiment, abstract.facts(experiment), read_start=False)
    return abstract.state(method)


def test_only_steps_of_jit_are_planned(here: Path, monkeypatch, capsys) -> None:
    assert cli.main(["plan", str(here), "--train.strategy", "pmap"]) == 2
    assert "train.strategy = 'pmap': only the step of jit" in capsys.readouterr().err
    experiment = tiny_network.experiment(train__strategy="pmap")
    with pytest.raises(ConfigError, match="pmap"):
        programs.compile_step(experiment, "fusion", distributed.data_mesh(1), 4)


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
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert len(said) > 4 and all(line.startswith("compiling ") for line in said)
    assert "8 pairs on each chip (1 of at most 18) ..." in said[0]
    assert f"({len(said)} of at most 18) ..." in said[-1]
    assert "stage reconstruction" in out and "stage fusion" in out
    assert "16 a step" in out and "not measured" in out
    plan = json.loads(Path("plan.json").read_text(encoding="utf8"))
    assert plan["batch_per_chip"] == tiny_network.experiment().train.batch_size
    for row in plan["stages"]:
        found = row["largest_batch"]
        assert found["batch"] <= 40 < found["too_large"]
        assert f"largest batch   {found['batch']} pairs a chip" in out
    assert "1.094 KiB of 15.75 GiB" in out and "1 of 2 of unknown length" in out
    assert out.count("collectives     none") == 2


def test_what_compiles_but_needs_more_than_there_is_does_not_fit(
    here: Path, monkeypatch, capsys
) -> None:
    memory = programs.Memory(1 << 30, 1 << 30, 1 << 30, int(14.8 * 2**30), 0)
    work = programs.Work("fusion", 8, memory, *(1e9, 1e8, 1e7, (), 0, 0, 1e9, 1e7, -1.0, 0.5))
    # Less than the datasheet's 16 GiB, more than a program gets of them.
    assert memory.total == int(15.8 * 2**30)
    assert dataclasses.replace(memory, peak=9 << 30, code=1 << 30).total == 10 << 30
    monkeypatch.setattr(programs, "compile_step", lambda *given: work)
    assert cli.main(["plan", str(here), "--stage", "fusion", "--no-search"]) == 1
    assert "DOES NOT FIT: 15.8 GiB of 15.75 GiB (100%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("needed", "available", "words"),
    [
        (20 << 30, 15 << 30, "needs at least 20 GiB of 15 GiB"),
        (0, 0, "needs more than 15.75 GiB"),
        (0, 15 << 30, "needs more than 15 GiB"),
    ],
)
def test_a_stage_that_does_not_fit_fails(
    needed: int, available: int, words: str, here: Path, monkeypatch, capsys
) -> None:
    too_large = programs.TooLarge("fusion", 8, needed, available, 1.0)
    monkeypatch.setattr(programs, "compile_step", lambda *given: too_large)
    assert cli.main(["plan", str(here), "--stage", "fusion", "--no-search"]) == 1
    assert f"DOES NOT FIT: {words}\n" in capsys.readouterr().out


def test_a_search_ends_at_what_a_program_gets(here: Path, monkeypatch, capsys) -> None:
    # One pair takes a tenth of a GiB: 157 fit 15.75 GiB, 160 the datasheet's 16.
    def compile_step(experiment, stage, mesh, batch):
        memory = programs.Memory(0, 0, 0, batch * 2**30 // 10, 0)
        return programs.Work(stage, batch, memory, *(1e9, 1e8, 1e7, (), 0, 0, 1e9, 1e7, -1.0, 0.5))

    monkeypatch.setattr(programs, "compile_step", compile_step)
    given = ["plan", str(here), "--stage", "fusion", "--batch-per-chip", "159", "--json", "-"]
    assert cli.main(given) == 1
    (row,) = json.loads(capsys.readouterr().out)["stages"]
    assert not row["fits"] and row["memory_share"] == pytest.approx(15.9 / 15.75)
    assert row["largest_batch"]["batch"] <= 157 < row["largest_batch"]["too_large"]


@pytest.mark.parametrize(
    "said",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 32.42M of 16.00M vmem.",
        "INTERNAL: no such thing",
    ],
)
def test_what_else_the_compiler_says_is_one_line(said: str, here, monkeypatch, capsys) -> None:
    def compile(self: Any) -> None:
        raise jax.errors.JaxRuntimeError(f"{said}\n  1. Size: 124.00M hbm\n")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    assert cli.main(["plan", str(here), "--stage", "fusion"]) == 1
    out, err = capsys.readouterr()
    told, complaint = err.splitlines()
    assert out == "" and told.startswith("compiling fusion")
    assert complaint == (
        "jaxfuse: fusion, 8 pairs on each of 4 cpu devices: the compiler gave up: " + said
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--topology", "v9:2x2"], 2, ["no chip 'v9'", "v5e, v5p, v6e"]),
        (["--topology"], 2, ["--topology: name a slice"]),
        (["--batch-per-chip", "many"], 2, ["--batch-per-chip many"]),
        (["--stage", "third"], 2, ["--stage third", "reconstruction, fusion"]),
        (["--train.accumulate", "3"], 2, ["train.accumulate"]),
        (["--train.fsdp", "3"], 2, ["train.fsdp = 3"]),
        (["--json", "none/plan.json"], 2, ["--json none/plan.json", "No such file", "folder"]),
        (["--json", "."], 2, ["--json .: ", "directory"]),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], code: int, words, here: Path, capsys) -> None:
    assert cli.main(["plan", str(here), *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxfuse: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_a_file_for_the_plan_is_tried_and_left_as_it_was(here: Path, monkeypatch, capsys) -> None:
    def make(*given: Any) -> None:
        assert not Path("new.json").exists() and Path("old.json").read_text() == "kept"
        raise distributed.TopologyError("not today")

    monkeypatch.setattr(report, "make", make)
    Path("old.json").write_text("kept")
    for name in ("new.json", "old.json"):
        assert cli.main(["plan", str(here), "--json", name]) == 1
        assert capsys.readouterr().err == "jaxfuse: not today\n"


def test_without_the_compiler_the_extra_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert cli.main(["plan", "demo", "--no-search"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    told = 'pip install -c constraints.txt -e ".[tpu]"'
    assert f"libtpu, the TPU compiler, is not installed: {told}" in err


def test_sizes_for_the_eye() -> None:
    assert [report.size(n) for n in (0, 1000, 1536, 5 << 20, 3 << 40)] == [
        *("0 B", "1000 B", "1.5 KiB", "5 MiB"),
        "3072 GiB",
    ]


# The TPU compiler.


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, devices: list[jax.Device]) -> None:
    """CPU devices in place of what the TPU compiler would give; it knows slices of whole hosts."""

    def topology(name: str, platform: str, **more: Any) -> Any:
        sizes = [int(size) for size in name.partition(":")[2].split("x")]
        if not more and (sizes[0] % 2 or sizes[1] % 2):
            raise jax.errors.JaxRuntimeError(
                f'INVALID_ARGUMENT: Topology layout "{name}" is not divisible by the given (or '
                'default) chips_per_host_bounds "2x2x1"\nand more'
            )
        return types.SimpleNamespace(devices=devices[: int(np.prod(sizes))])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(topologies, "get_topology_desc", topology)


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_meshes_of_tpus_are_like_those_of_training(fsdp: int, pretended: None) -> None:
    mesh, real = distributed.topology_mesh("v5e", (2, 4), fsdp), distributed.data_mesh(8, fsdp)
    assert mesh.axis_names == real.axis_names and dict(mesh.shape) == dict(real.shape)
    assert mesh.devices.tolist() == real.devices.tolist()
    with pytest.raises(ConfigError, match=r"train\.fsdp = 3: must divide the 8 chips of v5e:2x4"):
        distributed.topology_mesh("v5e", (2, 4), 3)


@pytest.mark.parametrize(
    ("kind", "shape", "told"),
    [
        ("v5e", (1, 2), "v5e:1x2: the compiler puts four chips, 2x2, on a host: take a slice such"),
        ("v5p", (2, 1, 1), "such as v5p:1x1x1, v5p:2x2x1, v5p:4x4x1"),
    ],
)
def test_an_impossible_slice_names_possible_ones(
    kind: str, shape: tuple[int, ...], told: str, pretended: None
) -> None:
    with pytest.raises(distributed.TopologyError, match=told) as caught:
        distributed.topology_mesh(kind, shape)
    assert "\n" not in str(caught.value) and "bounds" not in str(caught.value)


@needs_compiler
def test_slices_are_meshes_of_tpus() -> None:
    for kind, shape in (("v5e", (1, 1)), ("v5e", (2, 2)), ("v6e", (16, 16)), ("v5p", (2, 2, 1))):
        mesh = distributed.topology_mesh(kind, shape)
        assert mesh.size == np.prod(shape) and mesh.axis_names == (distributed.DATA_AXIS,)
        assert mesh.devices.flat[0].platform == "tpu"
    for kind, shape in (("v5e", (3, 3)), ("v5e", (1, 2)), ("v5p", (2, 1, 1))):
        with pytest.raises(distributed.TopologyError, match="2x2, on a host: take") as caught:
            distributed.topology_mesh(kind, shape)
        for name in str(caught.value).partition("such as ")[2].split(", "):
            where = chips.parse(name)
            assert distributed.topology_mesh(kind, where.shape).size == where.chips


FLOATS = 1 << 17
"""Of a row: half a MiB."""


def needs_rows(mesh: Mesh, kept: int, rows: int) -> programs.Memory | tuple[int, int] | None:
    """What the compiler says to a program that keeps so many arrays, and the one it is given."""

    def keep(x: jax.Array) -> jax.Array:
        made = []
        for _ in range(kept):
            x = lax.optimization_barrier(x * x.max())
            made.append(x)
        for each in reversed(made):
            x = lax.optimization_barrier(x + each * x.max())
        return x.sum()

    whole = distributed.replicated(mesh)
    given = jax.ShapeDtypeStruct((rows, FLOATS), np.float32)
    try:
        with distributed.no_compilation_cache():
            lowered = jax.jit(keep, in_shardings=whole, out_shardings=whole).lower(given)
            return programs.memory(lowered.compile(), "tpu")
    except jax.errors.JaxRuntimeError as error:
        return programs.exhausted(str(error))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape", "kept"), [("v5e", (1, 1), 14), ("v6e", (1, 1), 29), ("v5p", (1, 1, 1), 29)]
)
def test_the_limit_is_where_the_compiler_refuses(kind: str, shape, kept: int) -> None:
    mesh, usable = distributed.topology_mesh(kind, shape), chips.CHIPS[kind].usable_bytes
    small = needs_rows(mesh, kept, 512)
    assert isinstance(small, programs.Memory)
    each = (small.total - small.code) / 512
    # Tiles have eight rows: the most that fit, and two tiles more, for the compiler rounds what it
    # says of its limit.
    rows = int(usable / each) // 8 * 8
    largest, beyond = needs_rows(mesh, kept, rows), needs_rows(mesh, kept, rows + 16)
    assert isinstance(largest, programs.Memory) and isinstance(beyond, tuple)
    assert 0.99 * usable < largest.total <= usable < beyond[0]
    assert beyond[1] == usable


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
