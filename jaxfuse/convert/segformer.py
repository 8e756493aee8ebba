"""Hugging Face's SegFormer <-> our parameters.

Read are the arrays of SegformerForSemanticSegmentation, and the encoder of SegformerModel and
SegformerForImageClassification, whose classifier of whole images is left out. Sizes are read off
the arrays; the number of attention heads, which leaves no trace in them, is that of `config.json`,
or of the published network of these sizes. `num_batches_tracked` counts training steps and is not
kept: it is written as 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxfuse.convert import TO_OURS, TO_TORCH, ConvertError, Entry
from jaxfuse.models import Compute, Segmenter
from jaxfuse.models import segformer as network
from jaxfuse.models.mit import KERNELS, STAGES, STRIDES, Architecture
from jaxfuse.shapes import Params

NAME = "segformer"
"""What a network is called whose sizes are not published ones."""

_COUNTER = "decode_head.batch_norm.num_batches_tracked"
_KNOWN = ("encoder.patch_embeddings.", "encoder.block.", "decode_head.")
_FIXED: dict[str, Any] = {
    "patch_sizes": list(KERNELS),
    "strides": list(STRIDES),
    "hidden_act": "gelu",
    "num_channels": 3,
}
"""What `config.json` may not say otherwise."""


def recognised(names: Iterable[str]) -> bool:
    """Whether arrays of these names are a SegFormer as Hugging Face has it."""
    return any(name.removeprefix("segformer.").startswith(_KNOWN) for name in names)


def normalise_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of encoder and head, `encoder.` and `decode_head.` first; the rest left out."""
    named = {name.removeprefix("segformer."): array for name, array in state.items()}
    named.pop(_COUNTER, None)
    if not any(name.startswith("decode_head.") for name in named):
        for leaf in ("weight", "bias"):
            named.pop(f"classifier.{leaf}", None)
    return named


def _pair(module: str, name: str, path: tuple[str, ...], layout: str = "vector") -> Iterator[Entry]:
    yield Entry(module, f"{name}.weight", (*path, "weight"), layout)
    yield Entry(module, f"{name}.bias", (*path, "bias"), "vector")


def _block(prefix: str, path: tuple[str, ...], reduces: bool) -> Iterator[Entry]:
    module, attention, forward = "encoder", (*path, "attention"), (*path, "feed_forward")
    yield from _pair(module, f"{prefix}layer_norm_1", (*path, "norm1"))
    for name in ("query", "key", "value"):
        yield from _pair(module, f"{prefix}attention.self.{name}", (*attention, name), "linear")
    if reduces:
        yield from _pair(module, f"{prefix}attention.self.sr", (*attention, "reduce"), "dense")
        yield from _pair(module, f"{prefix}attention.self.layer_norm", (*attention, "reduce_norm"))
    yield from _pair(module, f"{prefix}attention.output.dense", (*attention, "project"), "linear")
    yield from _pair(module, f"{prefix}layer_norm_2", (*path, "norm2"))
    yield from _pair(module, f"{prefix}mlp.dense1", (*forward, "expand"), "linear")
    spatial = f"{prefix}mlp.dwconv.dwconv"
    yield Entry(module, f"{spatial}.weight", (*forward, "spatial"), "depthwise")
    yield Entry(module, f"{spatial}.bias", (*forward, "spatial_bias"), "vector")
    yield from _pair(module, f"{prefix}mlp.dense2", (*forward, "project"), "linear")


def entries(depths: Iterable[int], reduces: Iterable[bool], head: bool = True) -> tuple[Entry, ...]:
    """The parameter table: blocks of each stage, whether it reduces its keys, and the head."""
    found: list[Entry] = []
    for i, (depth, reduced) in enumerate(zip(depths, reduces, strict=True)):
        stage = ("encoder", f"at{i}")
        found += _pair("encoder", f"patch_embeddings.{i}.proj", (*stage, "embed"), "dense")
        found += _pair("encoder", f"patch_embeddings.{i}.layer_norm", (*stage, "embed_norm"))
        for j in range(depth):
            found += _block(f"block.{i}.{j}.", (*stage, "blocks", f"at{j}"), reduced)
        found += _pair("encoder", f"layer_norm.{i}", (*stage, "norm"))
    if head:
        for i in range(STAGES):
            found += _pair("decode_head", f"linear_c.{i}.proj", ("head", f"at{i}"), "linear")
        found.append(Entry("decode_head", "linear_fuse.weight", ("head", "fuse"), "point"))
        found += _pair("decode_head", "batch_norm", ("head", "norm"))
        for theirs, ours in (("running_mean", "mean"), ("running_var", "var")):
            path = ("head", "norm", ours)
            found.append(Entry("decode_head", f"batch_norm.{theirs}", path, "vector"))
        found += _pair("decode_head", "classifier", ("head", "classifier"), "point")
    return tuple(found)


def architecture(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> Architecture:
    """The sizes behind arrays with Hugging Face's names. config: the content of `config.json`."""
    named, config = normalise_names(state), config or {}

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in named:
            raise ConvertError(f"SegFormer: array {name} is missing: is the checkpoint complete?")
        found = np.shape(named[name])
        if len(found) != rank:
            raise ConvertError(f"SegFormer: {name} has shape {found}, needs {rank} axes")
        return found

    widths, depths, reductions, expansions = [], [], [], []
    for i in range(STAGES):
        widths.append(shape(f"encoder.patch_embeddings.{i}.proj.weight", 4)[0])
        blocks = [re.match(rf"encoder\.block\.{i}\.(\d+)\.", name) for name in named]
        depths.append(1 + max((int(found[1]) for found in blocks if found), default=0))
        inner = shape(f"encoder.block.{i}.0.mlp.dense1.weight", 2)[0]
        if inner % widths[i]:
            raise ConvertError(
                f"SegFormer: encoder.block.{i}.0.mlp.dense1.weight has {inner} rows, needs a "
                f"multiple of {widths[i]}"
            )
        expansions.append(inner // widths[i])
        reduce = f"encoder.block.{i}.0.attention.self.sr.weight"
        reductions.append(shape(reduce, 4)[2] if reduce in named else 1)
    decoder = config.get("decoder_hidden_size")
    if any(name.startswith("decode_head.") for name in named):
        decoder = shape("decode_head.linear_fuse.weight", 4)[0]
    found: dict[str, Any] = {
        "widths": tuple(widths),
        "depths": tuple(depths),
        "reductions": tuple(reductions),
        "expansions": tuple(expansions),
    }
    if decoder is not None:
        found["decoder"] = decoder
    _check_config(config, found)
    if "num_attention_heads" in config:
        try:
            return Architecture(**found, heads=tuple(config["num_attention_heads"]))
        except (TypeError, ValueError) as error:
            raise ConvertError(f"config.json: num_attention_heads: {error}") from error
    for sizes in network.ARCHITECTURES.values():
        if all(getattr(sizes, field) == value for field, value in found.items()):
            return sizes
    raise ConvertError(
        f"SegFormer: no published network has widths {widths} and depths {depths}, and the number "
        "of attention heads leaves no trace in the arrays: put the config.json of the checkpoint "
        "beside it (its num_attention_heads is needed)"
    )


def _check_config(config: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises where `config.json` does not describe the arrays, or a network that is not ours."""
    expected = {**_FIXED}
    for theirs, ours in (
        ("hidden_sizes", "widths"),
        ("depths", "depths"),
        ("sr_ratios", "reductions"),
        ("mlp_ratios", "expansions"),
    ):
        expected[theirs] = list(found[ours])
    if "decoder" in found:
        expected["decoder_hidden_size"] = found["decoder"]
    for key, value in expected.items():
        if config.get(key, value) != value:
            what = "jaxfuse has" if key in _FIXED else "the arrays have"
            raise ConvertError(
                f"SegFormer: config.json has {key} = {config[key]!r}, {what} {value!r}: is it the "
                "config.json of this checkpoint?"
            )


def name_of(sizes: Architecture) -> str:
    """The published network of these sizes, or "segformer" where there is none."""
    names = (name for name, published in network.ARCHITECTURES.items() if published == sizes)
    return next(names, NAME)


def segmenter(sizes: Architecture, classes: int, compute: Compute) -> Segmenter:
    """The network of these sizes."""
    return network.create(name_of(sizes), sizes, classes, compute)


def abstract(sizes: Architecture, classes: int) -> Params:
    """The parameters of these sizes as arrays without values."""
    import jax

    try:
        return jax.eval_shape(segmenter(sizes, classes, Compute()).init, jax.random.key(0))
    except ValueError as error:
        raise ConvertError(str(error)) from error


def from_huggingface(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> tuple[Architecture, Params]:
    """Sizes and parameters from `{torch name: array}`, float32. config: of `config.json`.

    Names start with `segformer.` or not. Without a head among the arrays the parameters are the
    encoder's alone: `{"encoder": ...}`. Raises ConvertError where an array is missing, unknown or
    of another shape.
    """
    named = normalise_names(state)
    sizes = architecture(state, config)
    head = any(name.startswith("decode_head.") for name in named)
    table = entries(sizes.depths, (n > 1 for n in sizes.reductions), head)
    expected = {f"{entry.module}.{entry.name}": entry for entry in table}
    missing = [name for name in expected if name not in named]
    if missing:
        raise ConvertError(
            f"SegFormer: {len(missing)} of {len(table)} arrays are missing, first {missing[0]}: is "
            "the checkpoint complete?"
        )
    unknown = sorted(named.keys() - expected.keys())
    if unknown:
        raise ConvertError(
            f"SegFormer: unknown array {unknown[0]} ({len(unknown)} in all): this checkpoint "
            "belongs to another network"
        )
    like = abstract(sizes, np.size(named["decode_head.classifier.bias"]) if head else 2)
    params: Params = {}
    for name, entry in expected.items():
        array, leaf = np.asarray(named[name]), like
        for key in entry.path:
            leaf = leaf[key]
        needed = TO_TORCH[entry.layout](np.empty(leaf.shape, np.bool_)).shape
        if array.shape != needed:
            raise ConvertError(f"SegFormer: {name} has shape {array.shape}, needs {needed}")
        node = params
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = np.ascontiguousarray(TO_OURS[entry.layout](array), np.float32)
    return sizes, params


def to_huggingface(params: Params) -> dict[str, np.ndarray]:
    """The arrays of SegformerForSemanticSegmentation; the inverse of `from_huggingface`, exactly.

    Parameters without a head give the encoder's arrays.
    """
    stages = [params["encoder"][f"at{i}"]["blocks"] for i in range(STAGES)]
    reduces = ["reduce" in blocks["at0"]["attention"] for blocks in stages]
    state: dict[str, np.ndarray] = {}
    for entry in entries(map(len, stages), reduces, "head" in params):
        leaf = params
        for key in entry.path:
            leaf = leaf[key]
        prefix = "segformer." if entry.module == "encoder" else ""
        array = TO_TORCH[entry.layout](np.asarray(leaf, np.float32))
        state[f"{prefix}{entry.module}.{entry.name}"] = np.ascontiguousarray(array)
    if "head" in params:
        state[_COUNTER] = np.zeros((), np.int64)
    return state


def huggingface_config(sizes: Architecture, classes: int) -> dict[str, Any]:
    """What `config.json` says of a network, for `SegformerForSemanticSegmentation`."""
    labels = {str(i): f"LABEL_{i}" for i in range(classes)}
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        **_FIXED,
        "num_encoder_blocks": STAGES,
        "hidden_sizes": list(sizes.widths),
        "depths": list(sizes.depths),
        "num_attention_heads": list(sizes.heads),
        "sr_ratios": list(sizes.reductions),
        "mlp_ratios": list(sizes.expansions),
        "decoder_hidden_size": sizes.decoder,
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
        "semantic_loss_ignore_index": 255,
    }
