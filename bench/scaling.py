"""Weak scaling of the training step: 1 to 8 devices that one CPU pretends to be, 1 and 2 processes.

The devices share the cores, so that more of them cannot be faster: what is compared is examples a
second of the whole machine, at an equal number of examples per device. What is lost is what
splitting, collectives and further processes cost. First every way must give the same loss and
gradient norm.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import machine, record
from bench.record import Run
from bench.sides import BenchError, Side, Work

PER_DEVICE, PATCH, STEPS = 4, 64, 10
COMPARED = 16
"""Examples of the batch on which all ways must agree."""
CLOSE = 1e-4
WAYS = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2))
"""(devices of each process, processes); the first one is what others are compared with."""


def _batch(first: int, rows: int, patch: int) -> dict[str, np.ndarray]:
    """Rows of one sequence, whoever holds them."""
    shape = (patch, patch)
    draws = [np.random.default_rng(first + row) for row in range(rows)]
    return {
        "visible": np.stack([rng.random((*shape, 3), np.float32) for rng in draws]),
        "infrared": np.stack([rng.random((*shape, 1), np.float32) for rng in draws]),
        "index": np.arange(first, first + rows, dtype=np.uint32),
    }


def _program(options: dict[str, Any]) -> tuple[Callable[[], None], dict[str, Any]]:
    """(some steps, facts); the same in every process of a side."""
    import jax

    from jaxfuse import distributed, methods, models
    from jaxfuse.config import SSVIFConfig
    from jaxfuse.methods import Facts
    from jaxfuse.train import steps
    from jaxfuse.train.state import init_state

    distributed.start()
    mesh = distributed.data_mesh()
    config = SSVIFConfig(guidance="none", stage1_epochs=1.0, stage2_epochs=0.0)
    method = methods.build(config, models.create("lite"), Facts(100_000))
    place = distributed.replicated(mesh)
    state = jax.jit(lambda key: init_state(method, key), out_shardings=place)(jax.random.key(0))
    step = steps.make_jit_step(method.stages[0], mesh)
    mine, count = jax.process_index(), jax.process_count()

    def rows(total: int) -> dict[str, Any]:
        share = total // count
        return distributed.to_devices(_batch(mine * share, share, options["patch"]), mesh)

    state, metrics = step(state, rows(COMPARED))
    found = jax.device_get({name: metrics[name] for name in ("loss", "grad_norm")})
    total = PER_DEVICE * mesh.size
    batch, states = rows(total), [state]

    def run() -> None:
        state = states.pop()
        for _ in range(options["steps"]):
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
        states.append(state)

    facts = {name: float(value) for name, value in found.items()}
    return run, {**facts, "examples": total * options["steps"]}


def train(options: dict[str, Any]) -> Work:
    """One way; further processes are started here and told when to run."""
    others = []
    if options["processes"] > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        os.environ["JAX_COORDINATOR_ADDRESS"] = address
        os.environ["JAX_NUM_PROCESSES"] = str(options["processes"])
        for number in range(1, options["processes"]):
            others.append(
                subprocess.Popen(
                    [sys.executable, "-m", "bench.scaling", json.dumps(options)],
                    env={**os.environ, "JAX_PROCESS_ID": str(number)},
                    cwd=machine.ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    text=True,
                )
            )
        os.environ["JAX_PROCESS_ID"] = "0"
    mine, facts = _program(options)

    def run() -> None:
        for other in others:
            assert other.stdin is not None
            other.stdin.write("run\n")
            other.stdin.flush()
        mine()

    def finish() -> dict[str, Any]:
        from jaxfuse import distributed

        for other in others:
            assert other.stdin is not None
            other.stdin.close()
        distributed.leave()
        return facts

    return Work(run, finish=finish)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    settings = {"patch": 32 if run.tiny else PATCH, "steps": 1 if run.tiny else STEPS}
    sides = []
    for devices, processes in (WAYS[0], WAYS[-1]) if run.tiny else WAYS:
        name = f"{devices} devices" if processes == 1 else f"{processes} processes of {devices}"
        options = {**settings, "devices": devices, "processes": processes}
        flag = f"--xla_force_host_platform_device_count={devices}"
        sides.append(Side(name, "bench.scaling:train", options, environment={"XLA_FLAGS": flag}))
    what = f"training step of lite, {PER_DEVICE} patches of {settings['patch']}x{settings['patch']}"
    what += " a device"
    result = record.measure(run, "scaling", what, sides, run.rounds(7), settings, rates)
    if not run.tiny:
        result["notes"].append("Peak memory with two processes is that of the first one.")
    first = result["sides"][sides[0].name]
    for side in sides:
        found = result["sides"][side.name]
        facts = found["facts"]
        facts["examples_per_second"] = facts["examples"] / found["median_seconds"]
        for name in ("loss", "grad_norm"):
            expected = first["facts"][name]
            off = abs(facts[name] - expected) / abs(expected)
            result["agreement"][f"{name}, {side.name}"] = off
            if off > CLOSE:
                raise BenchError(
                    f"{side.name}: {name} is {facts[name]}, but {expected} on one device: this "
                    "must be right before it is fast"
                )
    for side in sides[1:]:
        seconds = result["sides"][side.name]["seconds"]
        share = result["sides"][side.name]["facts"]["examples"] / first["facts"]["examples"]
        # Per example: the same work takes so many times as long.
        found = record.ratio([s / share for s in seconds], first["seconds"])
        memory = result["sides"][side.name]["peak_rss_bytes"] / first["peak_rss_bytes"]
        entry = {"time": found, "peak_rss": memory}
        result["ratios"][f"{side.name} / {sides[0].name}"] = entry
    return [result]


def table(result: dict[str, Any]) -> list[str]:
    """Every way of splitting, as a Markdown table."""
    rows = [
        "| | examples a step | examples/s | time per example | loss off by | grad norm off by |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, side in result["sides"].items():
        facts = side["facts"]
        cells = [name, f"{facts['examples'] // result['settings']['steps']}"]
        cells.append(f"{facts['examples_per_second']:.1f}")
        against = [entry for key, entry in result["ratios"].items() if key.startswith(f"{name} /")]
        if against:
            found = against[0]["time"]
            low, high = found["lowest"], found["highest"]
            cells.append(f"x {found['median']:.2f} ({low:.2f} to {high:.2f})")
        else:
            cells.append("x 1")
        for what in ("loss", "grad_norm"):
            cells.append(f"{result['agreement'][f'{what}, {name}']:.0e}")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _other(options: dict[str, Any]) -> None:
    from jaxfuse import distributed

    run, _ = _program(options)
    for line in sys.stdin:
        if line.strip() == "run":
            run()
    distributed.leave()


if __name__ == "__main__":
    _other(json.loads(sys.argv[1]))
