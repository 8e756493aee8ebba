"""One training step of CrossFuse's second stage: forward, backward, clipping, Adam.

Ours is `train.steps.make_jit_step` as the loop calls it, self-supervision included. The published
step is stated anew here: it computes two SSIM terms that its loss does not use, which are left out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bench import published, record
from bench.record import Run
from bench.sides import Side, Work

BATCH, PATCH = 8, 64
TINY_BATCH, TINY_PATCH = 2, 32
ACCELERATOR_BATCHES = (8, 32, 128)
CROP = 32
STEPS_PER_EPOCH = 100


def _batch(options: dict[str, Any]) -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(0), (options["batch"], options["patch"], options["patch"])
    return {
        "visible": rng.random((*shape, 3), np.float32),
        "infrared": rng.random((*shape, 1), np.float32),
        "index": np.arange(options["batch"], dtype=np.uint32),
    }


def ours(options: dict[str, Any]) -> Work:
    """Our step, compiled, from NumPy arrays; waits for the new state."""
    import jax
    import jax.numpy as jnp

    from jaxfuse import convert, distributed, methods, models
    from jaxfuse.config import CrossFuseConfig
    from jaxfuse.methods import Facts
    from jaxfuse.train import steps
    from jaxfuse.train.state import init_state

    config = CrossFuseConfig(stage1_epochs=0.0, crop_size=CROP)

    def build(remat: str, kernels: str) -> Any:
        model = models.create("crossfuse", options["dtype"], remat=remat, kernels=kernels)
        return methods.build(config, model, Facts(STEPS_PER_EPOCH))

    kernels = options.get("kernels", "auto")
    method_model = models.create("crossfuse", options["dtype"], kernels=kernels)
    method = build(options.get("remat", "auto"), kernels)
    mesh = distributed.data_mesh(1)
    init = jax.jit(lambda key: init_state(method, key), out_shardings=distributed.replicated(mesh))
    state = init(jax.random.key(0))
    if options["weights"]:
        given = convert.from_torch("crossfuse", published.load_weights(options["weights"]))
        params = jax.tree.map(
            lambda new, old: jax.device_put(jnp.array(new), old.sharding), given, state.params
        )
        state = state._replace(params=params)
    compiled = steps.make_jit_step(method.stages[0], mesh)
    batch = _batch(options)
    states, records = [state], []

    def run() -> None:
        new, metrics = compiled(states.pop(), distributed.to_devices(batch, mesh))
        states.append(jax.block_until_ready(new))
        records.append(metrics)

    def finish() -> dict[str, Any]:
        first = {name: float(value) for name, value in records[0].items()}
        facts: dict[str, Any] = {
            "dtype": options["dtype"],
            "kernels": method_model.native(),
            "first_loss": first["loss"] - first["theta"] * first["consistency"],
        }
        stats = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            facts["peak_device_bytes"] = stats["peak_bytes_in_use"]
        # XLA sees into no kernel: operations are counted without.
        return {**facts, **_work(options, build("none", "xla"), states[0], batch)}

    return Work(run, finish=finish)


def _work(options: dict[str, Any], method: Any, state: Any, batch: Any) -> dict[str, float]:
    """Operations without recomputation. Bytes: maps between sums over pixels, written and read once
    forward and, with their cotangents, twice backward; parameters, gradients and Adam's state."""
    import functools

    import jax

    from bench.floor import operations, sweep_bytes
    from jaxfuse import models
    from jaxfuse.train.steps import update

    count = operations(functools.partial(update, stage=method.stages[0]), state, batch)
    maps = sweep_bytes(
        models.create("crossfuse", options["dtype"], kernels="xla"),
        options["patch"],
        options["patch"],
    )
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    # Read: parameters, gradients, two moments. Written: gradients, parameters, two moments.
    traffic = 3.0 * options["batch"] * maps + 8.0 * parameters
    return {"operations": count.total, "bytes": traffic, "matrix_operations": count.matrix}


def published_side(options: dict[str, Any]) -> Work:
    """The published network under its stage-two loss and its four Adam optimizers."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    made = published.modules(options["reference"], 0, options["weights"])
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-4) for part in made.values()]
    for part in made.values():
        part.train()
    batch = _batch(options)
    rows = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    sobel = torch.stack([rows, rows.T])[:, None]
    losses: list[float] = []

    def gradient(image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(image, sobel, padding=1).abs().sum(1, keepdim=True)

    def correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x, y = (f.flatten(2) - f.flatten(2).mean(-1, keepdim=True) for f in (x, y))
        norms = x.square().sum(-1).sqrt() * y.square().sum(-1).sqrt()
        return ((x * y).sum(-1) / (norms + torch.finfo(x.dtype).eps)).clamp(-1, 1).mean()

    def blurred(image: torch.Tensor) -> torch.Tensor:
        sigma = float(torch.empty(1).uniform_(0.1, 5.0))

        def line(size: int) -> torch.Tensor:
            weights = torch.exp(-0.5 * ((torch.arange(size) - size // 2) / sigma) ** 2)
            return weights / weights.sum()

        kernel = torch.outer(line(21), line(9))[None, None]
        return F.conv2d(F.pad(image, (4, 4, 10, 10), mode="reflect"), kernel)

    def run() -> None:
        luma = batch["visible"] @ np.array([0.299, 0.587, 0.114], np.float32)
        visible = torch.from_numpy(luma[:, None])
        infrared = torch.from_numpy(batch["infrared"].transpose(0, 3, 1, 2))
        for optimizer in optimizers:
            optimizer.zero_grad()
        low_v, high_v, _ = made["encoder"](visible)
        low_i, high_i, _ = made["encoder"](infrared)
        low, high = made["base_fuse"](low_v + low_i), made["detail_fuse"](high_v + high_i)
        fused, _ = made["decoder"](visible, low, high)
        top, left = (int(torch.randint(0, options["patch"] - CROP + 1, ())) for _ in range(2))
        weak = fused[:, :, top : top + CROP, left : left + CROP]
        consistency = F.mse_loss(weak, blurred(weak))
        strongest = torch.maximum(gradient(visible), gradient(infrared))
        loss = F.l1_loss(torch.maximum(visible, infrared), fused)
        loss = loss + 10.0 * F.l1_loss(strongest, gradient(fused))
        apart = correlation(high_v, high_i).square() / (1.01 + correlation(low_v, low_i))
        loss = loss + 2.0 * apart
        losses.append(loss.item())
        (loss + 0.1 * consistency).backward()
        for part in made.values():
            torch.nn.utils.clip_grad_norm_(part.parameters(), 0.01)
        for optimizer in optimizers:
            optimizer.step()

    def finish() -> dict[str, Any]:
        return {"first_loss": losses[0], "threads": torch.get_num_threads()}

    return Work(run, finish=finish)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    patch = TINY_PATCH if run.tiny else PATCH
    batches = (TINY_BATCH,) if run.tiny else ACCELERATOR_BATCHES if run.accelerator else (BATCH,)
    weights = str(run.scratch / "step.npz") if run.reference else ""

    def side(name: str, target: str, batch: int, dtype: str = "float32", **more: Any) -> Side:
        options = {"batch": batch, "patch": patch, "dtype": dtype, "weights": weights, **more}
        return Side(name, f"bench.step:{target}", options)

    if run.accelerator:
        dtypes = ("float32", "bfloat16")
        sides = [side(f"batch {b} {d}", "ours", b, d) for b in batches for d in dtypes]
    else:
        sides = [
            side("ours", "ours", batches[0]),
            side("ours, XLA alone", "ours", batches[0], kernels="xla"),
            side(
                "ours, XLA alone, nothing recomputed",
                "ours",
                batches[0],
                remat="none",
                kernels="xla",
            ),
        ]
        if run.reference:
            more = {"reference": str(run.reference), "floor_of": "ours"}
            # First: it writes the weights that ours reads.
            sides.insert(0, side("published", "published_side", batches[0], **more))
    what = f"stage II step, batch {', '.join(map(str, batches))} of {patch}x{patch}"
    rounds = run.rounds(20 if run.accelerator else 5 if run.reference else 3)
    settings = {"batches": batches, "patch": patch, "self_supervision": True}
    result = record.measure(run, "step", what, sides, rounds, settings, rates)
    for found in result["sides"].values():
        if not math.isfinite(found["facts"]["first_loss"]):
            result["notes"].append("A loss is not finite: do not trust these times.")
    if run.accelerator:
        for b in batches:
            record.compare(result, f"batch {b} float32", f"batch {b} bfloat16")
        last = result["sides"].get(f"batch {batches[-1]} bfloat16")
        if last:
            what = f"floor / batch {batches[-1]} bfloat16, time"
            result["goals"] = [record.goal(what, 0.5, 1.0 / last["gap"], True, not run.tiny)]
        return [result]
    record.compare(result, "ours, XLA alone", "ours")
    record.compare(result, "ours, XLA alone", "ours, XLA alone, nothing recomputed")
    result["reference"] = published.facts(run.reference)
    if not run.reference:
        result["notes"].append(record.NO_REFERENCE)
        return [result]
    against, final = record.compare(result, "published", "ours"), not run.tiny
    first = [result["sides"][name]["facts"]["first_loss"] for name in ("published", "ours")]
    off = abs(first[1] / first[0] - 1.0)
    result["agreement"]["relative difference of the first loss without its random term"] = off
    times = against["time"]["median"]
    result["goals"] = [
        record.goal("published / ours, time", 2.0, times, at_least=True, final=final),
        record.goal("published / ours, peak memory", 4.0, against["peak_rss"], True, final),
        record.goal("relative difference of the first loss", 1e-4, off, final=final),
    ]
    return [result]
