"""Published PyTorch weights <-> our parameters, names and layouts stated once.

Torch convolutions are (out, in / groups, height, width); ours are (height, width, in, out), 1x1
(in, out) and depthwise (height, width, channels). Nothing is guessed: a missing, unknown or
misshapen array is an error. Fusion networks are here, segmentation networks in
`jaxfuse.convert.segformer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxfuse.config import UserError
from jaxfuse.models import MODELS
from jaxfuse.models import crossfuse as crossfuse_network
from jaxfuse.shapes import Params

TorchModules = Mapping[str, Mapping[str, np.ndarray]]
"""{module: {torch parameter name: array}}."""


class ConvertError(UserError, ValueError):
    """Weights that do not fit; the message names the array and the remedy."""


class Entry(NamedTuple):
    """One parameter: where it lives in torch and in our nested dict, and how its axes are ordered
    there.
    """

    module: str
    name: str
    path: tuple[str, ...]
    layout: str
    """vector, head (n, 1, 1), linear, dense (k x k), point (1x1), depthwise (3x3)."""


TO_OURS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "vector": lambda a: a,
    "head": lambda a: a[:, 0, 0],
    "linear": lambda a: a.T,
    "dense": lambda a: a.transpose(2, 3, 1, 0),
    "point": lambda a: a[:, :, 0, 0].T,
    "depthwise": lambda a: a[:, 0].transpose(1, 2, 0),
}
TO_TORCH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "vector": lambda a: a,
    "head": lambda a: a[:, None, None],
    "linear": lambda a: a.T,
    "dense": lambda a: a.transpose(3, 2, 0, 1),
    "point": lambda a: a.T[:, :, None, None],
    "depthwise": lambda a: a.transpose(2, 0, 1)[:, None],
}


def _norms(module: str, prefix: str, path: tuple[str, ...]) -> Iterator[Entry]:
    for norm in ("norm1", "norm2"):
        for leaf in ("weight", "bias"):
            yield Entry(module, f"{prefix}{norm}.body.{leaf}", (*path, norm, leaf), "vector")


def _restormer(module: str, prefix: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield from _norms(module, prefix, path)
    for name, ours, layout in (
        ("attn.temperature", ("attention", "temperature"), "head"),
        ("attn.qkv.weight", ("attention", "expand"), "point"),
        ("attn.qkv_dwconv.weight", ("attention", "spatial"), "depthwise"),
        ("attn.project_out.weight", ("attention", "project"), "point"),
        ("ffn.project_in.weight", ("feed_forward", "expand"), "point"),
        ("ffn.dwconv.weight", ("feed_forward", "spatial"), "depthwise"),
        ("ffn.project_out.weight", ("feed_forward", "project"), "point"),
    ):
        yield Entry(module, prefix + name, (*path, *ours), layout)


def _long_scale(module: str, prefix: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield from _norms(module, prefix, path)
    for name, ours, layout in (
        ("attn.scale", ("attention", "temperature"), "head"),
        ("attn.qkv1.weight", ("attention", "expand"), "point"),
        ("attn.qkv2.weight", ("attention", "spatial"), "dense"),
        ("attn.proj.weight", ("attention", "project"), "point"),
        ("mlp.project_in.weight", ("feed_forward", "expand"), "point"),
        ("mlp.dwconv.weight", ("feed_forward", "spatial"), "dense"),
        ("mlp.project_out.weight", ("feed_forward", "project"), "point"),
    ):
        yield Entry(module, prefix + name, (*path, *ours), layout)


def _node(module: str, prefix: str, path: tuple[str, ...]) -> Iterator[Entry]:
    for ours in ("phi", "rho", "eta"):
        block = f"{prefix}theta_{ours}.bottleneckBlock."
        yield Entry(module, f"{block}0.weight", (*path, ours, "expand"), "point")
        yield Entry(module, f"{block}3.weight", (*path, ours, "spatial"), "depthwise")
        yield Entry(module, f"{block}5.weight", (*path, ours, "project"), "point")
    yield Entry(module, f"{prefix}shffleconv.weight", (*path, "mix"), "point")
    yield Entry(module, f"{prefix}shffleconv.bias", (*path, "mix_bias"), "vector")


def _crossfuse() -> tuple[Entry, ...]:
    entries = [Entry("encoder", "patch_embed.proj.weight", ("encoder", "embed"), "dense")]
    for i in range(crossfuse_network.ENCODER_BLOCKS):
        entries += _restormer("encoder", f"encoder_level1.{i}.", ("encoder", "blocks", f"at{i}"))
    entries += _long_scale("encoder", "baseFeature.", ("encoder", "low"))
    for i in range(crossfuse_network.ENCODER_NODES):
        entries += _node("encoder", f"detailFeature.net.{i}.", ("encoder", "high", f"at{i}"))
    entries.append(Entry("decoder", "reduce_channel.weight", ("decoder", "reduce"), "point"))
    for i in range(crossfuse_network.DECODER_BLOCKS):
        entries += _restormer("decoder", f"encoder_level2.{i}.", ("decoder", "blocks", f"at{i}"))
    entries.append(Entry("decoder", "output.0.weight", ("decoder", "narrow"), "dense"))
    entries.append(Entry("decoder", "output.2.weight", ("decoder", "output"), "dense"))
    entries += _long_scale("base_fuse", "", ("fuse_low",))
    entries += _node("detail_fuse", "net.0.", ("fuse_high", "at0"))
    return tuple(entries)


TABLES: dict[str, Callable[[], tuple[Entry, ...]]] = {"crossfuse": _crossfuse}

MODULE_NAMES = {
    "DIDF_Encoder": "encoder",
    "DIDF_Decoder": "decoder",
    "BaseFuseLayer": "base_fuse",
    "DetailFuseLayer": "detail_fuse",
}
"""Top-level keys of published CrossFuse and CDDFuse checkpoints -> module names used here."""


def entries(name: str) -> tuple[Entry, ...]:
    """The parameter table of a model; a model without one raises with the list of those that have
    one.
    """
    if name not in TABLES:
        raise ConvertError(
            f"no published layout for model {name!r}: there is one for {', '.join(sorted(TABLES))} "
            f"(models: {', '.join(sorted(MODELS))})"
        )
    return TABLES[name]()


def normalise_names(modules: TorchModules) -> dict[str, dict[str, np.ndarray]]:
    """Published module names to ours, and `module.` prefixes (nn.DataParallel) removed."""
    return {
        MODULE_NAMES.get(module, module): {
            name.removeprefix("module."): array for name, array in state.items()
        }
        for module, state in modules.items()
    }


def from_torch(name: str, modules: TorchModules) -> Params:
    """Our parameters from `{module: {torch name: array}}`, float32.

    For crossfuse the modules are encoder, decoder, base_fuse and detail_fuse, or the published
    DIDF_Encoder, DIDF_Decoder, BaseFuseLayer and DetailFuseLayer; names may start with `module.`.
    Raises ConvertError where an array is missing, unknown or of another shape.
    """
    table = entries(name)
    given = normalise_names(modules)
    shapes = {
        entry.path: shape for entry, shape in zip(table, _torch_shapes(name, table), strict=True)
    }
    expected = {(entry.module, entry.name) for entry in table}
    missing = [e for e in table if e.name not in given.get(e.module, {})]
    if missing:
        raise ConvertError(
            f"{name}: {len(missing)} of {len(table)} arrays are missing, first "
            f"{missing[0].module}/{missing[0].name}: "
            f"is this a {name} checkpoint? (modules found: {', '.join(given) or 'none'})"
        )
    unknown = [(m, n) for m, state in given.items() for n in state if (m, n) not in expected]
    if unknown:
        raise ConvertError(
            f"{name}: unknown array {'/'.join(unknown[0])} ({len(unknown)} in all): "
            "this checkpoint belongs to another network"
        )
    params: Params = {}
    for entry in table:
        array = np.asarray(given[entry.module][entry.name])
        if array.shape != shapes[entry.path]:
            raise ConvertError(
                f"{name}: {entry.module}/{entry.name} has shape {array.shape}, needs "
                f"{shapes[entry.path]}"
            )
        node = params
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = np.ascontiguousarray(TO_OURS[entry.layout](array), np.float32)
    return params


def to_torch(name: str, params: Params) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of `from_torch`, exactly: `{module: {torch name: array}}`."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for entry in entries(name):
        leaf = params
        for key in entry.path:
            leaf = leaf[key]
        array = np.ascontiguousarray(TO_TORCH[entry.layout](np.asarray(leaf, np.float32)))
        modules.setdefault(entry.module, {})[entry.name] = array
    return modules


def _torch_shapes(name: str, table: tuple[Entry, ...]) -> list[tuple[int, ...]]:
    import jax

    from jaxfuse.models import create

    abstract = jax.eval_shape(create(name).init, jax.random.key(0))
    shapes = []
    for entry in table:
        leaf = abstract
        for key in entry.path:
            leaf = leaf[key]
        shapes.append(TO_TORCH[entry.layout](np.empty(leaf.shape, np.bool_)).shape)
    return shapes
