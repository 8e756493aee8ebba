"""Hugging Face's SegFormer to ours and back: every array in its place, and clear words else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxfuse import cli, convert, models, weights
from jaxfuse.convert import ConvertError, segformer
from jaxfuse.infer import predict
from jaxfuse.models import Compute
from jaxfuse.models.mit import Architecture
from jaxfuse.models.segformer import ARCHITECTURES
from jaxfuse.shapes import Params
from jaxfuse.weights import WeightsError, load_segmenter, load_weights

SIZES = Architecture((8, 8, 12, 16), (1, 2, 1, 1), heads=(2, 2, 3, 4), decoder=8)
"""Of no published network."""
CLASSES = 4

State = dict[str, np.ndarray]


def torch_shapes(sizes: Architecture, classes: int) -> dict[str, tuple[int, ...]]:
    """What `SegformerForSemanticSegmentation(config).state_dict()` holds, written out by hand."""
    shapes: dict[str, tuple[int, ...]] = {}

    def pair(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    for i, (width, inputs) in enumerate(zip(sizes.widths, (3, *sizes.widths), strict=False)):
        stage = "segformer.encoder"
        kernel = 3 if i else 7
        pair(f"{stage}.patch_embeddings.{i}.proj", width, inputs, kernel, kernel)
        pair(f"{stage}.patch_embeddings.{i}.layer_norm", width)
        inner, reduction = sizes.expansions[i] * width, sizes.reductions[i]
        for j in range(sizes.depths[i]):
            block = f"{stage}.block.{i}.{j}"
            pair(f"{block}.layer_norm_1", width)
            for name in ("query", "key", "value"):
                pair(f"{block}.attention.self.{name}", width, width)
            if reduction > 1:
                pair(f"{block}.attention.self.sr", width, width, reduction, reduction)
                pair(f"{block}.attention.self.layer_norm", width)
            pair(f"{block}.attention.output.dense", width, width)
            pair(f"{block}.layer_norm_2", width)
            pair(f"{block}.mlp.dense1", inner, width)
            pair(f"{block}.mlp.dwconv.dwconv", inner, 1, 3, 3)
            pair(f"{block}.mlp.dense2", width, inner)
        pair(f"{stage}.layer_norm.{i}", width)
    for i, width in enumerate(sizes.widths):
        pair(f"decode_head.linear_c.{i}.proj", sizes.decoder, width)
    shapes["decode_head.linear_fuse.weight"] = (sizes.decoder, 4 * sizes.decoder, 1, 1)
    pair("decode_head.batch_norm", sizes.decoder)
    shapes["decode_head.batch_norm.running_mean"] = (sizes.decoder,)
    shapes["decode_head.batch_norm.running_var"] = (sizes.decoder,)
    shapes["decode_head.batch_norm.num_batches_tracked"] = ()
    pair("decode_head.classifier", classes, sizes.decoder, 1, 1)
    return shapes


def made(sizes: Architecture, classes: int = CLASSES) -> State:
    """A checkpoint in which no two numbers are equal."""
    state, start = {}, 1.0
    for name, shape in torch_shapes(sizes, classes).items():
        count = int(np.prod(shape))
        state[name] = (1e-4 * (start + np.arange(count, dtype=np.float64))).reshape(shape)
        state[name] = state[name].astype(np.float32)
        start += count
    state["decode_head.batch_norm.num_batches_tracked"] = np.array(0, np.int64)
    return state


@pytest.fixture
def state() -> State:
    return made(SIZES)


@pytest.fixture
def config() -> dict[str, Any]:
    return segformer.huggingface_config(SIZES, CLASSES)


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].flags.c_contiguous, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_equal(found: Params, expected: Params) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def folder(
    path: Path, state: State, config: dict[str, Any] | None, name: str = "model.safetensors"
) -> Path:
    """What `save_pretrained` writes."""
    path.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(state, path / name, metadata={"format": "pt"})
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def refused(path: Path, classes: int | None = None) -> str:
    with pytest.raises(WeightsError) as error:
        load_weights(path, classes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_there_and_back(state, config):
    sizes, params = segformer.from_huggingface(state, config)
    assert sizes == SIZES
    like = jax.eval_shape(segformer.segmenter(SIZES, CLASSES, Compute()).init, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(like)
    assert_same(segformer.to_huggingface(params), state)


def test_the_golden_checkpoint(golden, tmp_path):
    """From Hugging Face's own arrays through every kind of file, and back to the same arrays."""
    with np.load(golden / "segformer_reference.npz") as file:
        state = {n.removeprefix("param/"): file[n] for n in file.files if n.startswith("param/")}
        config = {"model_type": "segformer", **json.loads(str(file["config_json"]))}
        image, expected = file["input"].transpose(0, 2, 3, 1), file["logits_f64"]
    source = folder(tmp_path / "theirs", state, config)
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back" / "model.safetensors"
    assert cli.main(["convert", str(source), str(ours)]) == 0
    assert cli.main(["convert", str(ours), str(back), "--layout", "torch"]) == 0
    assert_same(safetensors.numpy.load_file(back), state)
    assert (
        json.loads((back.parent / "config.json").read_text())["num_attention_heads"]
        == (config["num_attention_heads"])
    )
    for path in (source, ours, back, back.parent):
        segmenter, params = load_segmenter(path, 9)
        assert (segmenter.name, segmenter.classes) == ("segformer", 9)
        assert_equal(params, segformer.from_huggingface(state, config)[1])
    logits = jax.jit(segmenter.network)(params, image).logits
    np.testing.assert_allclose(logits, expected.transpose(0, 2, 3, 1), atol=4e-6)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_published_sizes_are_recognised(name):
    """From the shapes alone, with and without a head."""
    sizes = ARCHITECTURES[name]
    state = {n: np.empty(shape, np.bool_) for n, shape in torch_shapes(sizes, 19).items()}
    assert segformer.recognised(state)
    assert segformer.architecture(state) == sizes
    assert segformer.name_of(sizes) == name
    encoder = {n: array for n, array in state.items() if "encoder" in n}
    assert segformer.architecture(encoder) == sizes
    like = segformer.abstract(sizes, 19)
    counts = [sum(a.size for n, a in state.items() if "num_batches" not in n)]
    assert counts == [sum(leaf.size for leaf in jax.tree.leaves(like))]
    config = segformer.huggingface_config(sizes, 19)
    assert segformer.architecture(state, config) == sizes


def test_half_precision_and_float64(config, state):
    _, expected = segformer.from_huggingface(state, config)
    _, wide = segformer.from_huggingface(
        {name: array.astype(np.float64) for name, array in state.items()}, config
    )
    assert_equal(wide, expected)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(wide))


def test_heads_without_a_config(state, tmp_path):
    text = refused(folder(tmp_path, state, None))
    assert "no published network has widths [8, 8, 12, 16] and depths [1, 2, 1, 1]" in text
    assert "put the config.json of the checkpoint beside it (its num_attention_heads" in text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_attention_heads", [3, 2, 3, 4], "num_attention_heads: .*8 channels and 3 heads"),
        ("num_attention_heads", [1, 2], "num_attention_heads"),
        ("num_attention_heads", 4, "num_attention_heads"),
        ("hidden_sizes", [8, 8, 12, 32], r"hidden_sizes = .*the arrays have \[8, 8, 12, 16\]"),
        ("depths", [1, 1, 1, 1], r"depths = .*the arrays have \[1, 2, 1, 1\]"),
        ("decoder_hidden_size", 256, "decoder_hidden_size = 256, the arrays have 8"),
        ("strides", [4, 2, 2, 1], r"strides = .*jaxfuse has \[4, 2, 2, 2\]"),
        ("hidden_act", "relu", "hidden_act = 'relu', jaxfuse has 'gelu'"),
        ("num_channels", 4, "num_channels = 4, jaxfuse has 3"),
        ("model_type", "swin", "describes a model of type 'swin'"),
    ],
)
def test_a_config_that_does_not_fit(state, config, tmp_path, key, value, message):
    path = folder(tmp_path, state, {**config, key: value})
    with pytest.raises(WeightsError, match=message):
        load_weights(path)


def test_a_config_that_is_no_config(state, tmp_path):
    path = folder(tmp_path, state, None)
    (path / "config.json").write_text("{")
    assert "config.json: is not JSON" in refused(path)
    # A training run's own config.json says nothing of a model type.
    (path / "config.json").write_text('{"method": {}}')
    assert "put the config.json of the checkpoint beside it" in refused(path)


@pytest.mark.parametrize(
    "name",
    [
        "segformer.encoder.patch_embeddings.2.proj.weight",
        "segformer.encoder.block.1.1.attention.self.sr.bias",
        "segformer.encoder.block.3.0.mlp.dwconv.dwconv.weight",
        "decode_head.batch_norm.running_var",
        "decode_head.classifier.bias",
        "decode_head.linear_fuse.weight",
    ],
)
def test_missing_and_misshapen_arrays(state, config, name):
    bare = name.removeprefix("segformer.")
    fewer = {key: array for key, array in state.items() if key != name}
    with pytest.raises(ConvertError, match=rf"missing.*{bare}|{bare} is missing"):
        segformer.from_huggingface(fewer, config)
    if name.endswith("classifier.bias"):
        return  # It is the count of classes.
    wrong = {**state, name: np.concatenate([state[name]] * 3)}
    with pytest.raises(ConvertError):
        segformer.from_huggingface(wrong, config)
    wrong = {**state, name: state[name][None]}
    with pytest.raises(ConvertError, match=rf"{bare} has shape \(1, "):
        segformer.from_huggingface(wrong, config)


def test_unknown_arrays(state, config):
    for name in ("segformer.encoder.block.0.0.gate.weight", "auxiliary.weight"):
        with pytest.raises(ConvertError, match=r"unknown array .*weight \(1 in all\)"):
            segformer.from_huggingface({**state, name: np.zeros(3)}, config)


def test_one_class(config):
    with pytest.raises(ConvertError, match="1 classes: needs 2 to 255"):
        segformer.from_huggingface(made(SIZES, 1), {**config, "id2label": {"0": "sky"}})


def encoder_alone(state: State, kind: str) -> State:
    """SegformerModel, or SegformerForImageClassification."""
    encoder = {name: array for name, array in state.items() if ".encoder." in name}
    if kind == "model":
        return {name.removeprefix("segformer."): array for name, array in encoder.items()}
    width = SIZES.widths[-1]
    head = {"classifier.weight": np.ones((10, width)), "classifier.bias": np.ones(10)}
    return {**encoder, **{name: array.astype(np.float32) for name, array in head.items()}}


@pytest.mark.parametrize("kind", ["model", "classifier"])
def test_an_encoder_alone(state, config, tmp_path, kind, capsys):
    source = folder(tmp_path / "mit", encoder_alone(state, kind), config)
    target = tmp_path / "start.safetensors"
    assert "no segmentation head: say how many classes" in refused(source)
    assert cli.main(["convert", str(source), str(target)]) == 1 and not target.exists()
    assert cli.main(["convert", str(source), str(target), "--classes", "6"]) == 0
    assert "a fresh head" in capsys.readouterr().out
    segmenter, params = load_segmenter(target, 6)
    assert segmenter.classes == 6
    assert_equal(params["encoder"], segformer.from_huggingface(state, config)[1]["encoder"])
    fresh = segmenter.init(jax.random.key(0))["head"]
    assert_equal(params["head"], fresh)
    assert load_weights(target).metadata["head"] == "fresh"
    alone = segformer.to_huggingface({"encoder": params["encoder"]})
    assert_same(alone, {n: array for n, array in state.items() if ".encoder." in n})


def test_another_number_of_classes(state, config, tmp_path):
    source = folder(tmp_path / "theirs", state, config)
    ours = tmp_path / "ours.npz"
    weights.convert_file(source, ours)
    for path in (source, ours):
        assert f"has {CLASSES} classes, 9 are asked for" in refused(path, 9)
        assert load_segmenter(path, CLASSES)[0].classes == CLASSES
        assert load_segmenter(path)[0].classes == CLASSES


def test_other_weights_files(state, config, tmp_path):
    ours = tmp_path / "ours.safetensors"
    weights.convert_file(folder(tmp_path / "theirs", state, config), ours)
    with pytest.raises(WeightsError, match="holds segformer, a segmentation network: give weights"):
        predict.load(ours)
    with pytest.raises(WeightsError, match=r"exchanged as \.safetensors or \.npz"):
        weights.convert_file(ours, tmp_path / "ours.pth", "torch")
    flat = safetensors.numpy.load_file(ours)
    safetensors.numpy.save_file(flat, tmp_path / "bare.safetensors")
    assert "put the config.json" in refused(tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="holds crossfuse, a fusion network"):
        load_segmenter("crossfuse")


def test_our_files_of_published_sizes(tmp_path):
    """Recognised by their shapes where another tool has dropped what the file says of itself."""
    segmenter = models.create_segmenter("segformer_tiny", 5)
    params = jax.device_get(segmenter.init(jax.random.key(3)))
    path = tmp_path / "tiny.safetensors"
    weights.save_weights(path, "segformer_tiny", params, {"step": "3"})
    read = load_weights(path)
    assert (read.name, read.metadata["step"]) == ("segformer_tiny", "3")
    assert_equal(read.params, params)
    flat = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(flat, path)
    assert load_weights(path).name == "segformer_tiny"
    del flat["head/norm/var"]
    safetensors.numpy.save_file(flat, path, metadata={"model": "segformer_tiny"})
    assert "lacks array 'head/norm/var'" in refused(path)
    weights.save_weights(path, "segformer_b0", params)
    assert "segformer_b0" in refused(path)


def test_damaged_numbers(state, config, tmp_path):
    state["decode_head.classifier.bias"][1] = np.nan
    assert "decode_head.classifier.bias holds NaN" in refused(folder(tmp_path, state, config))


def test_layouts_are_inverse():
    rng = np.random.default_rng(0)
    for layout, shape in (("linear", (3, 5)), ("dense", (4, 3, 7, 7)), ("depthwise", (6, 1, 3, 3))):
        array = rng.normal(size=shape)
        again = convert.TO_TORCH[layout](convert.TO_OURS[layout](array))
        np.testing.assert_array_equal(again, array)
