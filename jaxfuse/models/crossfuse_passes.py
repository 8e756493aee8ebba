"""CrossFuse as sweeps over an image of any size: each finishes one block and sums for the next."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from jaxfuse.models.base import Pass, functional
from jaxfuse.models.crossfuse import (
    CHANNELS,
    DECODER_BLOCKS,
    ENCODER_BLOCKS,
    ENCODER_NODES,
    Block,
    CouplingNode,
    reduced,
    to_image,
)
from jaxfuse.models.layers import Compute, conv3x3
from jaxfuse.shapes import Params


def passes(compute: Compute) -> tuple[Pass, ...]:
    """The passes of the network, in order; those that differ in parameters only share a program."""
    restormer = functional(Block(False, compute))[1]
    long_scale = functional(Block(True, compute))[1]
    node = functional(CouplingNode(compute))[1]

    def embed(params, image):
        return conv3x3(compute.cast(image), params["embed"])

    def nodes(params, x):
        for i in range(len(params)):
            x = node(params[f"at{i}"])(x)
        return x

    def first_sums(params, maps, sums, mask):
        return (), (restormer(params["next"]).sums(embed(params, maps[0]), mask),)

    def first_block(params, maps, sums, mask):
        x = restormer(params["block"]).finish(embed(params, maps[0]), sums[0])
        return (x,), (restormer(params["next"]).sums(x, mask),)

    def block(params, maps, sums, mask):
        x = restormer(params["block"]).finish(maps[0], sums[0])
        return (x,), (restormer(params["next"]).sums(x, mask),)

    def last_block(params, maps, sums, mask):
        x = restormer(params["block"]).finish(maps[0], sums[0])
        return (x,), (long_scale(params["next"]).sums(x, mask),)

    def branches(params, maps, sums, mask):
        low = long_scale(params["low"]).finish(maps[0], sums[0])
        return (low, nodes(params["high"], maps[0])), ()

    def branches_added(params, maps, sums, mask):
        (low, high), _ = branches(params, maps[:1], sums, mask)
        low, high = maps[1] + low, maps[2] + high
        return (low, high), (long_scale(params["next"]).sums(low, mask),)

    def fuse(params, maps, sums, mask):
        low = long_scale(params["low"]).finish(maps[0], sums[0])
        x = reduced(params["reduce"], low, nodes(params["high"], maps[1]))
        return (x,), (restormer(params["next"]).sums(x, mask),)

    def output(params, maps, sums, mask):
        features = restormer(params["block"]).finish(maps[0], sums[0])
        return (to_image(params["narrow"], params["output"], features, maps[1]),), ()

    made: list[Pass] = []

    def add(program, name, halo, reads, needs, writes, gives, **parts: str) -> None:
        def select(params: Params) -> Params:
            return {
                key: functools.reduce(dict.__getitem__, path.split("/"), params)
                for key, path in parts.items()
            }

        made.append(Pass(name, program, select, reads, needs, writes, gives, halo))

    features = (CHANNELS, jnp.dtype(compute.dtype))
    x, both = {"x": features}, {"low": features, "high": features}
    low, high, first = "encoder/low", "encoder/high", "encoder/embed"
    at = [f"encoder/blocks/at{i}" for i in range(ENCODER_BLOCKS)]
    for source in ("visible", "infrared"):
        name = f"encode {source}"
        of = [(f"{source}{i}",) for i in range(ENCODER_BLOCKS + 1)]
        add(first_sums, f"{name} 0", 2, (source,), (), {}, of[0], embed=first, next=at[0])
        add(
            first_block,
            f"{name} 1",
            4,
            (source,),
            of[0],
            x,
            of[1],
            embed=first,
            block=at[0],
            next=at[1],
        )
        for i in range(1, ENCODER_BLOCKS - 1):
            add(
                block,
                f"{name} {i + 1}",
                3,
                ("x",),
                of[i],
                x,
                of[i + 1],
                block=at[i],
                next=at[i + 1],
            )
        add(
            last_block,
            f"{name} {ENCODER_BLOCKS}",
            3,
            ("x",),
            of[-2],
            x,
            of[-1],
            block=at[-1],
            next=low,
        )
        name, halo = f"branches {source}", 2 * ENCODER_NODES
        if source == "visible":
            add(branches, name, halo, ("x",), of[-1], both, (), low=low, high=high)
        else:
            reads = ("x", "low", "high")
            add(
                branches_added,
                name,
                halo,
                reads,
                of[-1],
                both,
                ("low",),
                low=low,
                high=high,
                next="fuse_low",
            )

    at = [f"decoder/blocks/at{i}" for i in range(DECODER_BLOCKS)]
    of = [(f"decoder{i}",) for i in range(DECODER_BLOCKS)]
    parts = {"low": "fuse_low", "high": "fuse_high", "reduce": "decoder/reduce", "next": at[0]}
    add(fuse, "fuse", 3, ("low", "high"), ("low",), x, of[0], **parts)
    for i in range(DECODER_BLOCKS - 1):
        add(block, f"decode {i}", 3, ("x",), of[i], x, of[i + 1], block=at[i], next=at[i + 1])
    parts = {"block": at[-1], "narrow": "decoder/narrow", "output": "decoder/output"}
    add(
        output,
        "output",
        4,
        ("x", "visible"),
        of[-1],
        {"image": (1, jnp.dtype("float32"))},
        (),
        **parts,
    )
    return tuple(made)
