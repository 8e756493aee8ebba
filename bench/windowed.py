"""What a window of CrossFuse is made of, in ways of writing it: the dense 3x3, the sums of the
attention, a whole Restormer block. 96 x 96 pixels, the window that fusing takes on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench import record
from bench.record import Run
from bench.sides import Side, Work

SIDE, TINY_SIDE = 96, 12
CALLS = 20
"""Calls a measured run: one takes milliseconds."""


def _dense(way: str) -> Callable[[Any, Any], Any]:
    import jax.numpy as jnp

    from jaxfuse.models.layers import plain3x3, zero1

    def columns(x: Any, kernel: Any) -> Any:
        """All nine neighbours side by side, then one product."""
        _, h, w, _ = x.shape
        padded = zero1(x)
        near = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
        flat = jnp.concatenate(near, -1).reshape(h * w, -1)
        return (flat @ kernel.reshape(-1, kernel.shape[-1])).reshape(1, h, w, -1)

    def rows(x: Any, kernel: Any) -> Any:
        """Three neighbours side by side, then three products."""
        _, h, w, c = x.shape
        padded = zero1(x)
        near = jnp.concatenate([padded[:, :, j : j + w] for j in range(3)], -1)
        parts = [
            near[:, i : i + h].reshape(h * w, 3 * c) @ kernel[i].reshape(3 * c, -1)
            for i in range(3)
        ]
        return sum(parts).reshape(1, h, w, -1)

    return {"convolution": plain3x3, "columns": columns, "rows": rows}[way]


def _sums(way: str) -> Callable[[Any], Any]:
    import jax.numpy as jnp

    from jaxfuse.models.layers import products_and_squares

    def whole(x: Any) -> Any:
        """q and k with q and k: squares and products lie in one matrix."""
        every = jnp.einsum("bnc,bnd->bcd", x, x)
        half = x.shape[-1] // 2
        return every[:, :half, half:], jnp.diagonal(every, axis1=1, axis2=2)

    return {"products": products_and_squares, "whole": whole}[way]


def _block(way: str) -> Callable[[Any, Any], Any]:
    import jax.numpy as jnp
    from jax import lax

    from jaxfuse.models.base import functional
    from jaxfuse.models.crossfuse import Block
    from jaxfuse.models.layers import Compute, gated_gelu, products_and_squares, zero1

    bind = functional(Block(False, Compute(kernels="native" if way == "kernels" else "xla")))[1]

    def ours(params: Any, x: Any) -> Any:
        return bind(params)(x)

    def padded(params: Any, x: Any) -> Any:
        """Pads normalised features and a channel of ones, 65 channels, instead of what they are
        expanded to, 192 and 256.
        """

        def extended(x: Any) -> Any:
            centred = x - x.mean(-1, keepdims=True)
            scaled = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
            return zero1(jnp.concatenate([scaled, jnp.ones((*x.shape[:-1], 1))], -1))

        def expanded(x: Any, norm: Any, kernel: Any, spatial: Any) -> Any:
            whole = jnp.concatenate(
                [norm["weight"][:, None] * kernel, (norm["bias"] @ kernel)[None]], 0
            )
            _, h, w, c = x.shape
            y = (x.reshape(-1, c) @ whole).reshape(1, h, w, -1)
            return sum(
                y[:, i : i + h - 2, j : j + w - 2] * spatial[i, j][None, None, None]
                for i in range(3)
                for j in range(3)
            )

        attention, forward = params["attention"], params["feed_forward"]
        _, h, w, c = x.shape
        qkv = expanded(extended(x), params["norm1"], attention["expand"], attention["spatial"])
        products, squares = products_and_squares(qkv[..., : 2 * c].reshape(1, h * w, 2 * c))
        q, k = (jnp.sqrt(s).reshape(8, c // 8) for s in jnp.split(squares[0], 2))
        heads = products[0].reshape(8, c // 8, 8, c // 8)
        logits = jnp.einsum("hchd->hcd", heads) / q[:, :, None] / k[:, None, :]
        weights = logits * attention["temperature"][:, None, None]
        weights = jnp.exp(weights - weights.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        mix = jnp.einsum("hce,hcd->hed", weights, attention["project"].reshape(8, c // 8, c))
        x = x + (qkv[..., 2 * c :].reshape(-1, c) @ mix.reshape(c, c)).reshape(x.shape)
        y = expanded(extended(x), params["norm2"], forward["expand"], forward["spatial"])
        gate, value = jnp.split(y, 2, -1)
        return x + (gated_gelu(gate, value).reshape(h * w, -1) @ forward["project"]).reshape(
            x.shape
        )

    return {"ours": ours, "kernels": ours, "padded": padded}[way]


def work(options: dict[str, Any]) -> Work:
    """One way of one thing."""
    import jax
    import jax.numpy as jnp

    from bench.floor import operations
    from jaxfuse.models.base import functional
    from jaxfuse.models.crossfuse import Block
    from jaxfuse.models.layers import Compute

    side, rng = options["side"], np.random.default_rng(0)

    def noise(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    kind, way = options["kind"], options["way"]
    if kind == "dense":
        given, make = (noise(1, side, side, 64), noise(3, 3, 64, 192)), _dense
    elif kind == "sums":
        given, make = (noise(1, side * side, 128),), _sums
    else:
        params = functional(Block(False, Compute()))[0](jax.random.key(0))
        given, make = (params, noise(1, side, side, 64)), _block
    program = jax.jit(make(way))
    last: list[Any] = []

    def run() -> None:
        for _ in range(options["calls"]):
            last[:] = jax.tree.leaves(jax.block_until_ready(program(*given)))

    def finish() -> dict[str, Any]:
        first = {"dense": "convolution", "sums": "products", "block": "ours"}[kind]
        count = operations(make(first), *given)
        moved = sum(leaf.nbytes for leaf in jax.tree.leaves((given, last)))
        calls = options["calls"]
        return {
            "operations": calls * count.total,
            "bytes": calls * float(moved),
            "checksum": [float(np.square(np.asarray(leaf, np.float64)).mean()) for leaf in last],
        }

    return Work(run, finish=finish)


WAYS = {
    "dense": ("convolution", "columns", "rows"),
    "sums": ("products", "whole"),
    "block": ("ours", "padded", "kernels"),
}


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    side, calls = (TINY_SIDE, 1) if run.tiny else (SIDE, CALLS)
    sides = [
        Side(
            f"{kind} {way}",
            "bench.windowed:work",
            {"kind": kind, "way": way, "side": side, "calls": calls},
        )
        for kind, ways in WAYS.items()
        for way in ways
    ]
    what = f"parts of CrossFuse on a window of {side}x{side}, {calls} calls"
    settings = {"side": side, "calls": calls}
    result = record.measure(run, "windowed", what, sides, run.rounds(9), settings, rates)
    for kind, (first, *others) in WAYS.items():
        for other in others:
            record.compare(result, f"{kind} {other}", f"{kind} {first}")
            a, b = (result["sides"][f"{kind} {w}"]["facts"]["checksum"] for w in (first, other))
            worst = max(abs(x / y - 1) for x, y in zip(a, b, strict=True))
            result["agreement"][f"{kind}: relative difference of mean squares, {other}"] = worst
    return [result]
