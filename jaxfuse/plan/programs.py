"""Compiles the very step that training runs, for chips that are not here, and reads it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from jaxfuse import distributed, models
from jaxfuse.config import ConfigError, Experiment, UserError
from jaxfuse.methods import Stage
from jaxfuse.plan import arithmetic, hlo, traffic
from jaxfuse.plan.traffic import Collective
from jaxfuse.train import abstract, setup, steps

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class CompilerError(UserError, RuntimeError):
    """A step that the compiler gives up on for another reason than a chip's main memory."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip while a step runs."""

    arguments: int
    """Parameters, optimizer state, memory, batch."""
    outputs: int
    """New state and metrics; `aliased` of them take the place of arguments."""
    aliased: int
    temporaries: int
    code: int
    peak: int = 0
    """Of all that lives at one moment, memory on the chip included, by which the TPU compiler
    judges; 0 for other platforms, where XLA leaves temporaries out of it."""

    @property
    def total(self) -> int:
        """Of HBM: what the parts take one beside the other, or less where they never all live."""
        parts = self.arguments + self.outputs - self.aliased + self.temporaries
        return min(parts, self.peak or parts) + self.code


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step of one stage takes on each chip."""

    stage: str
    batch_per_chip: int
    memory: Memory
    matrix_flops: float
    """Of matrix products and convolutions, counted in the trace, loops as often as they run."""
    other_flops: float
    """Of arithmetic element by element and reductions; a lower bound."""
    memory_bytes: float
    """Read from and written to HBM, counted in the compiled program, loops as often as they run."""
    collectives: tuple[Collective, ...]
    loops: int
    unknown_loops: int
    """Loops whose length the program does not say: counted once."""
    xla_flops: float
    """XLA's own count: loop bodies once, its rewriting included."""
    xla_bytes: float
    """Likewise; memory on the chip counts as any other."""
    xla_optimal_seconds: float
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A step that the compiler could not fit into a chip's memory."""

    stage: str
    batch_per_chip: int
    needed_bytes: int
    """What it says it needs; 0 where it does not say."""
    available_bytes: int
    compile_seconds: float


def check(experiment: Experiment) -> None:
    """Raises ConfigError for a step that cannot be planned."""
    if experiment.train.strategy == "pmap":
        raise ConfigError(
            "train.strategy = 'pmap': only the step of jit can be compiled for chips that are not "
            "here: set it to 'jit'"
        )


def stages(experiment: Experiment) -> tuple[Stage, ...]:
    """The stages of an experiment's method, without its data."""
    _, method = setup.build(experiment, abstract.facts(experiment), read_start=False)
    return method.stages


def chosen(experiment: Experiment, names: Sequence[str]) -> list[str]:
    """The stages of these names, all where there are none. Raises ConfigError for a wrong one."""
    known = [stage.name for stage in stages(experiment)]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--stage {name}: {experiment.method.name} has no such stage: choose one of "
                f"{', '.join(known)}"
            )
    return list(names) or known


def compile_step(
    experiment: Experiment, stage_name: str, mesh: Mesh, batch_per_chip: int
) -> Work | TooLarge:
    """Compiles a step of the stage for the mesh's chips, each with so many target pairs.

    The state lies on the mesh as in training. Raises ConfigError and CompilerError.
    """
    began = time.monotonic()
    check(experiment)
    experiment = abstract.on_devices(experiment, mesh.size, batch_per_chip)
    setup.check(experiment, mesh.size)
    platform = mesh.devices.flat[0].platform
    with models.traced_for(platform), distributed.no_compilation_cache():
        facts = abstract.facts(experiment)
        _, method = setup.build(experiment, facts, read_start=False)
        stage = next(stage for stage in method.stages if stage.name == stage_name)
        state = abstract.state(method)
        placed = distributed.by_rule(state, mesh)
        step = steps.make_jit_step(stage, mesh, experiment.train.accumulate, placed)
        traced = step.trace(state, abstract.batch(experiment))
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            refused = exhausted(str(error))
            if refused is None:
                said = str(error).partition("\n")[0]
                raise CompilerError(
                    f"{stage_name}, {batch_per_chip} pairs on each of {mesh.size} {platform} "
                    f"devices: the compiler gave up: {said}"
                ) from error
            taken = time.monotonic() - began
            return TooLarge(stage_name, batch_per_chip, *refused, taken)
    program = hlo.parse(compiled.as_text())
    cost = compiled.cost_analysis()
    counted = arithmetic.count(traced.jaxpr.jaxpr)
    loops = list(program.loops())
    return Work(
        stage_name,
        batch_per_chip,
        memory(compiled, platform),
        counted.matrix / mesh.size,
        counted.other / mesh.size,
        traffic.memory_bytes(program),
        traffic.collectives(program, mesh.size),
        len(loops),
        loops.count(None),
        cost.get("flops", 0.0),
        cost.get("bytes accessed", 0.0),
        cost.get("optimal_seconds", 0.0),
        time.monotonic() - began,
    )


def memory(compiled: jax.stages.Compiled, platform: str) -> Memory:
    """What a compiled program takes on each device."""
    sizes = compiled.memory_analysis()
    return Memory(
        sizes.argument_size_in_bytes,
        sizes.output_size_in_bytes,
        sizes.alias_size_in_bytes,
        sizes.temp_size_in_bytes,
        sizes.generated_code_size_in_bytes,
        sizes.peak_memory_in_bytes if platform == "tpu" else 0,
    )


def exhausted(message: str) -> tuple[int, int] | None:
    """(bytes of HBM needed, bytes there are) in the compiler's complaint, zeros where it does not
    say; None where it complains of something else, such as memory on the chip.

    Where temporaries alone are too much it names these, so that a little more is needed.
    """
    first = message.partition("\n")[0]
    if "RESOURCE_EXHAUSTED" not in first or not re.search(r"\bhbm\b", first, re.IGNORECASE):
        return None
    amount = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"Used {amount} of {amount} hbm", message) or re.search(
        rf"temporaries \({amount}\) exceeds available HBM \({amount}\)", message
    )
    if found is None:
        return 0, 0
    used, unit, there, its_unit = found.groups()
    return int(float(used) * _UNITS[unit]), int(float(there) * _UNITS[its_unit])
