"""Weights files: what is written is read, in every kind and layout, and nothing else is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from jaxfuse import convert, models, weights
from jaxfuse.shapes import Params
from jaxfuse.weights import (
    Weights,
    WeightsError,
    convert_file,
    export_weights,
    find,
    load_weights,
    save_weights,
)

NAME = "crossfuse"
KINDS = (".safetensors", ".npz")
PUBLISHED = {ours: theirs for theirs, ours in convert.MODULE_NAMES.items()}


@pytest.fixture(scope="module")
def params() -> Params:
    """Numbers that float32 has and float16 has not, each another."""
    abstract = jax.eval_shape(models.create(NAME).init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(abstract)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        structure, [rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    )


@pytest.fixture
def modules(params) -> dict[str, dict[str, np.ndarray]]:
    return convert.to_torch(NAME, params)


def flat(tree: Params, prefix: str = "") -> dict[str, np.ndarray]:
    found = {}
    for key, value in tree.items():
        found |= (
            flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


def assert_same(found: Params, expected: Params) -> None:
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert type(value) is np.ndarray and value.dtype == np.float32, key
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def refused(path: Path) -> str:
    """The one line that reading the file ends with."""
    with pytest.raises(WeightsError) as error:
        load_weights(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


# Our own layout


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(tmp_path, params, kind):
    path = tmp_path / f"a{kind}"
    save_weights(path, NAME, params, {"step": "12", "author": "zoë"})
    read = load_weights(path)
    assert read.name == NAME
    assert_same(read.params, params)
    assert read.metadata["step"] == "12" and read.metadata["author"] == "zoë"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_file_says_what_it_is(tmp_path, params):
    path = tmp_path / "a.safetensors"
    # What the caller says of a file does not change what it is.
    save_weights(path, NAME, params, {"model": "other", "format": "x", "step": 3})
    with safe_open(path, "np") as file:
        about = file.metadata()
        assert set(file.keys()) == set(flat(params))
    assert about["model"] == NAME and about["format"] == weights.FORMAT and about["step"] == "3"


def test_views_are_written_by_their_values(tmp_path, params):
    """safetensors writes the memory of an array, not its elements."""
    turned = jax.tree.map(lambda a: np.asfortranarray(np.repeat(a, 2, axis=-1))[..., ::2], params)
    assert any(not leaf.flags.c_contiguous for leaf in jax.tree.leaves(turned))
    save_weights(tmp_path / "a.safetensors", NAME, turned)
    assert_same(load_weights(tmp_path / "a.safetensors").params, params)


def test_device_arrays_are_written(tmp_path, params):
    save_weights(tmp_path / "a.safetensors", NAME, jax.tree.map(jax.numpy.asarray, params))
    assert_same(load_weights(tmp_path / "a.safetensors").params, params)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("float16", ".safetensors"), ("float16", ".npz"), ("bfloat16", ".safetensors")],
)
def test_small_files(tmp_path, params, dtype, kind):
    path = tmp_path / f"a{kind}"
    save_weights(path, NAME, params, dtype=dtype)
    assert path.stat().st_size < 2.1 * sum(leaf.size for leaf in jax.tree.leaves(params))
    rounded = jax.tree.map(lambda a: a.astype(dtype).astype(np.float32), params)
    assert_same(load_weights(path).params, rounded)


def test_what_a_small_type_cannot_hold_is_not_written(tmp_path, params):
    params = jax.tree.map(np.copy, params)
    params["decoder"]["narrow"][0, 0, 0, 0] = 1e5
    path = tmp_path / "a.safetensors"
    with np.errstate(over="ignore"), pytest.raises(WeightsError, match="decoder/narrow is not fin"):
        save_weights(path, NAME, params, dtype="float16")
    with pytest.raises(WeightsError, match="npz has no bfloat16"):
        save_weights(tmp_path / "a.npz", NAME, params, dtype="bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_files_without_metadata_are_recognised_by_their_keys(tmp_path, params):
    path = tmp_path / "a.safetensors"
    wide = {key: value.astype(np.float64) for key, value in flat(params).items()}
    safetensors.numpy.save_file(wide, path)
    read = load_weights(path)
    assert read.name == NAME
    assert_same(read.params, params)


# The published layout


def test_published_checkpoint(tmp_path, params):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    export_weights(path, Weights(NAME, params, {}))
    state = torch.load(path, weights_only=True)
    assert sorted(state) == sorted(convert.MODULE_NAMES)
    # As nn.DataParallel names them: the published scripts load exactly these.
    assert all(key.startswith("module.") for arrays in state.values() for key in arrays)
    assert_same(load_weights(path).params, params)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_with_other_things_in_them(tmp_path, params, modules, prefix):
    torch = pytest.importorskip("torch")
    state = {
        PUBLISHED[module]: {
            f"{prefix}{name}": torch.nn.Parameter(torch.from_numpy(array.copy()).double())
            for name, array in arrays.items()
        }
        for module, arrays in modules.items()
    }
    path = tmp_path / "a.pt"
    torch.save({"epoch": 160, "optimizer": {"lr": 1e-4}, **state}, path)
    assert_same(load_weights(path).params, params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["{0}/{1}", "{0}.{1}", "{0}.module.{1}", "state/{0}/{1}"])
@pytest.mark.parametrize("published", [False, True])
def test_torch_names_in_flat_files(tmp_path, params, modules, kind, form, published):
    arrays = {
        form.format(PUBLISHED[module] if published else module, name): array.copy()
        for module, state in modules.items()
        for name, array in state.items()
    }
    if form.startswith("state/"):
        arrays["vi"] = np.zeros((1, 1, 4, 4), np.float32)  # as in a file of test values
    path = tmp_path / f"a{kind}"
    if kind == ".npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path)
    read = load_weights(path)
    assert read.name == NAME
    assert_same(read.params, params)


def test_golden_file(golden):
    read = load_weights(golden / "crossfuse_reference.npz")
    with np.load(golden / "crossfuse_reference.npz") as file:
        expected = file["state/decoder/reduce_channel.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(read.params["decoder"]["reduce"], expected)


def test_without_torch(tmp_path, params, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert 'need PyTorch: install jaxfuse with its extra "convert"' in refused(path)
    with pytest.raises(WeightsError, match="need PyTorch"):
        export_weights(tmp_path / "b.pth", Weights(NAME, params, {}))


# convert


def test_convert_there_and_back(tmp_path, params):
    pytest.importorskip("torch")
    ours = tmp_path / "ours.safetensors"
    save_weights(ours, NAME, params, {"step": "12"})
    chain = [ours]
    for name, layout in (
        ("a.pth", "torch"),
        ("b.npz", "torch"),
        ("c.safetensors", "torch"),
        ("d.npz", "jaxfuse"),
        ("e.safetensors", "jaxfuse"),
    ):
        told = convert_file(chain[-1], tmp_path / name, layout)
        assert str(tmp_path / name) in told and "1,188,272" in told and layout in told
        chain.append(tmp_path / name)
    for path in chain:
        assert_same(load_weights(path).params, params)
    last = tmp_path / "f.safetensors"
    convert_file(ours, last)
    assert load_weights(last).metadata["step"] == "12"
    before = last.read_bytes()
    with pytest.raises(WeightsError, match=r"f\.safetensors: exists already: add --overwrite"):
        convert_file(tmp_path / "b.npz", last, "torch")
    assert last.read_bytes() == before
    convert_file(tmp_path / "b.npz", last, "torch", overwrite=True)
    assert last.read_bytes() != before


@pytest.mark.parametrize(
    ("target", "layout", "message"),
    [
        ("a.pth", "jaxfuse", "add --layout torch"),
        ("a.bin", "jaxfuse", "cannot write '.bin': use .safetensors or .npz"),
        ("a.onnx", "torch", "cannot write '.onnx'"),
    ],
)
def test_targets_that_cannot_be(tmp_path, params, target, layout, message):
    save_weights(tmp_path / "ours.npz", NAME, params)
    with pytest.raises(WeightsError, match=message):
        convert_file(tmp_path / "ours.npz", tmp_path / target, layout)
    assert [path.name for path in tmp_path.iterdir()] == ["ours.npz"]


# What is refused


class Opened:
    """Pickled, this is a command that makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    path, trap = tmp_path / "a.pth", tmp_path / "trap"
    torch.save({"DIDF_Encoder": {"a": torch.zeros(1)}, "x": Opened(trap)}, path)
    assert "code in a weights file is never run" in refused(path)
    path.write_bytes(pickle.dumps(Opened(trap), protocol=2))
    refused(path)
    assert not trap.exists()


def test_code_in_an_npz_does_not_run(tmp_path):
    path, trap = tmp_path / "a.npz", tmp_path / "trap"
    np.savez(path, **{"encoder/embed": np.array([Opened(trap)], object)})
    assert "code in a weights file is never run" in refused(path)
    assert not trap.exists()


@pytest.mark.parametrize("kind", [*KINDS, ".pth"])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_damaged_files(tmp_path, params, kind, kept):
    path = tmp_path / f"a{kind}"
    if kind == ".pth":
        pytest.importorskip("torch")
        export_weights(path, Weights(NAME, params, {}))
    else:
        save_weights(path, NAME, params)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    assert "damaged or not a weights file" in refused(path)


def test_a_picture_is_no_weights(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "damaged or not a weights file" in refused(path)
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "unknown kind '.png': use .safetensors, .npz, .pth or .pt" in refused(path)


def lacking(arrays):
    del arrays["decoder/narrow"]


def unknown(arrays):
    arrays["decoder/extra"] = np.zeros(1, np.float32)


def misshapen(arrays):
    arrays["decoder/narrow"] = arrays["decoder/narrow"][:-1].copy()


def integers(arrays):
    arrays["decoder/narrow"] = np.zeros(arrays["decoder/narrow"].shape, np.int32)


def not_a_number(arrays):
    arrays["decoder/narrow"][0, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lacking, "lacks array 'decoder/narrow' (1 in all): not weights of crossfuse"),
        (unknown, "has unknown array 'decoder/extra' (1 in all): not weights of crossfuse"),
        (misshapen, "decoder/narrow has shape (2, 3, 64, 32), crossfuse needs (3, 3, 64, 32)"),
        (integers, "decoder/narrow holds int32: weights are floating point"),
        (not_a_number, "decoder/narrow holds NaN or infinite numbers"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, params, spoil, message):
    path = tmp_path / "a.safetensors"
    arrays = {key: value.copy() for key, value in flat(params).items()}
    spoil(arrays)
    about = {"format": weights.FORMAT, "model": NAME}
    safetensors.numpy.save_file(arrays, path, metadata=about)
    assert message in refused(path)


def test_published_arrays_that_do_not_fit(tmp_path, modules):
    path = tmp_path / "a.npz"
    arrays = {f"{m}/{name}": array for m, state in modules.items() for name, array in state.items()}
    del arrays["decoder/output.0.weight"]
    np.savez(path, **arrays)
    assert "arrays are missing, first decoder/output.0.weight" in refused(path)
    np.savez(path, **{"backbone/a.weight": np.zeros(3, np.float32)})
    assert "no known network in it (top-level keys: backbone): expected DIDF_E" in refused(path)


def test_a_state_dict_without_modules(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    for state in ({"a.weight": torch.zeros(3)}, [torch.zeros(3)], {"epoch": 3}):
        torch.save(state, path)
        assert "expected a dict of state dicts with keys DIDF_Encoder" in refused(path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"format": "jaxfuse-9", "model": NAME}, "has format 'jaxfuse-9', this version reads"),
        (
            {"format": "jaxfuse-1", "model": "other"},
            "a model 'other' that this version does not have",
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_versions(tmp_path, params, kind, about, message):
    path = tmp_path / f"a{kind}"
    if kind == ".npz":
        np.savez(path, __metadata__=np.array(json.dumps(about)), **flat(params))
    else:
        safetensors.numpy.save_file(flat(params), path, metadata=about)
    assert message in refused(path)


# Where weights are looked for


def test_run_folders(tmp_path, params):
    assert "holds no weights.safetensors: a run writes it with its first checkpoint" in refused(
        tmp_path
    )
    save_weights(tmp_path / "weights.safetensors", NAME, params)
    assert find(tmp_path) == tmp_path / "weights.safetensors"
    assert_same(load_weights(str(tmp_path)).params, params)


def test_names(tmp_path, params, monkeypatch):
    monkeypatch.setattr(weights, "_PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        WeightsError, match=r"crossfuse: no such weights .*it comes with none.*give"
    ):
        load_weights("crossfuse")
    packaged(tmp_path / "pretrained" / "night.safetensors", params)
    assert weights.packaged() == ["night"]
    assert_same(load_weights("night").params, params)
    with pytest.raises(WeightsError, match=r"crossfuse: no such weights in the .*it has night"):
        load_weights("crossfuse")
    for path in ("night.pth", "runs/night", "../night"):
        with pytest.raises(WeightsError, match=f"{path}: no such file or run folder"):
            load_weights(path)


def packaged(path: Path, params: Params) -> None:
    """A file as the package has it, with its checksum beside it."""
    save_weights(path, NAME, params)
    line = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    (path.parent / weights.SUMS).write_text(line, encoding="utf8")


def test_packaged_weights_are_those_of_the_package(tmp_path, params, monkeypatch):
    monkeypatch.setattr(weights, "_PRETRAINED", tmp_path)
    path = tmp_path / "night.safetensors"
    packaged(path, params)
    assert_same(load_weights("night").params, params)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"night.safetensors: its SHA-256 .*install jaxfuse aga"):
        load_weights("night")
    (tmp_path / "other.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"other.safetensors: not listed in SHA256SUMS"):
        load_weights("other")
    for text in ("one word a line\n", None):
        (tmp_path / weights.SUMS).unlink()
        if text:
            (tmp_path / weights.SUMS).write_text(text, encoding="utf8")
        with pytest.raises(WeightsError, match=r"SHA256SUMS: cannot be read .*install jaxfuse aga"):
            load_weights("night")


def test_every_packaged_file_has_its_checksum() -> None:
    sums = (weights._PRETRAINED / weights.SUMS).read_text(encoding="utf8").splitlines()
    assert [line.split()[1] for line in sums] == [f"{n}.safetensors" for n in weights.packaged()]
    for name in weights.packaged():
        weights.find_packaged(name)


# Writing


@pytest.mark.parametrize("target", ["a.safetensors", "a.npz", "a.pth"])
def test_a_full_disk_keeps_what_was_there(tmp_path, params, monkeypatch, target):
    if target.endswith(".pth"):
        pytest.importorskip("torch")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / target
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError) as error:
        if target.endswith(".pth"):
            export_weights(path, Weights(NAME, params, {}))
        else:
            save_weights(path, NAME, params)
    assert str(error.value).startswith(f"{path}: cannot be written (No space left on device): free")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == [target]


def test_a_place_that_cannot_be_written(tmp_path, params):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"file/a.safetensors: cannot be written"):
        save_weights(tmp_path / "file" / "a.safetensors", NAME, params)
    save_weights(tmp_path / "new" / "folder" / "a.safetensors", NAME, params)
    assert (tmp_path / "new" / "folder" / "a.safetensors").exists()


def test_the_default_weights_come_with_the_package() -> None:
    from jaxfuse.infer.predict import DEFAULT_WEIGHTS

    assert DEFAULT_WEIGHTS in weights.packaged()
    found = weights.load_weights(DEFAULT_WEIGHTS)
    assert found.name == DEFAULT_WEIGHTS == "lite" and "RoadScene" in found.metadata["data"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))
