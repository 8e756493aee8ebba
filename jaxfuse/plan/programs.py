"""Compiles the very step that training runs, for chips that are not here, and reads it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from jaxfuse import distributed, models
from jaxfuse.config import ConfigError, Experiment
from jaxfuse.methods import Stage
from jaxfuse.plan import arithmetic, hlo, traffic
from jaxfuse.plan.traffic import Collective
from jaxfuse.train import abstract, setup, steps

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


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
    """Of all that lives at one moment, memory on the chip included; 0 where XLA does not say."""

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
    """Compiles a step of the stage for the mesh's chips, each with so many target pairs."""
    began = time.monotonic()
    experiment = abstract.on_devices(experiment, mesh.size, batch_per_chip)
    setup.check(experiment, mesh.size)
    platform = mesh.devices.flat[0].platform
    with models.traced_for(platform), distributed.no_compilation_cache():
        facts = abstract.facts(experiment)
        _, method = setup.build(experiment, facts, read_start=False)
        stage = next(stage for stage in method.stages if stage.name == stage_name)
        step = steps.make_jit_step(stage, mesh, experiment.train.accumulate)
        traced = step.trace(abstract.state(method), abstract.batch(experiment))
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed, available = exhausted(str(error))
            taken = time.monotonic() - began
            return TooLarge(stage_name, batch_per_chip, needed, available, taken)
    program = hlo.parse(compiled.as_text())
    sizes, cost = compiled.memory_analysis(), compiled.cost_analysis()
    counted = arithmetic.count(traced.jaxpr.jaxpr)
    loops = list(program.loops())
    return Work(
        stage_name,
        batch_per_chip,
        Memory(
            sizes.argument_size_in_bytes,
            sizes.output_size_in_bytes,
            sizes.alias_size_in_bytes,
            sizes.temp_size_in_bytes,
            sizes.generated_code_size_in_bytes,
            sizes.peak_memory_in_bytes,
        ),
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


def exhausted(message: str) -> tuple[int, int]:
    """(bytes needed, bytes there are) in the compiler's complaint; zeros where it does not say.

    Where temporaries alone are too much it names these, so that a little more is needed.
    """
    amount = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"Used {amount} of {amount} hbm", message) or re.search(
        rf"temporaries \({amount}\) exceeds available HBM \({amount}\)", message
    )
    if found is None:
        return 0, 0
    used, unit, there, its_unit = found.groups()
    return int(float(used) * _UNITS[unit]), int(float(there) * _UNITS[its_unit])
