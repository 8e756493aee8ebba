"""Published PyTorch weights to ours and back: nothing moved, nothing guessed."""

from __future__ import annotations

import copy

import jax
import numpy as np
import pytest

from jaxfuse import convert, models
from jaxfuse.convert import ConvertError
from jaxfuse.shapes import Params

PUBLISHED = {ours: published for published, ours in convert.MODULE_NAMES.items()}
NAMES = sorted(convert.TABLES)


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def params(name) -> Params:
    """Every element another number, so that no two can be confused."""
    abstract = jax.eval_shape(models.create(name).init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(abstract)
    numbers = np.arange(sum(leaf.size for leaf in leaves), dtype=np.float32)
    assert numbers[-1] < 2**24
    parts = np.split(numbers, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


@pytest.fixture
def modules(name, params) -> dict[str, dict[str, np.ndarray]]:
    return convert.to_torch(name, params)


def assert_same(found: Params, expected: Params) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == np.float32
        assert a.flags.c_contiguous
        np.testing.assert_array_equal(a, b)


def test_there_and_back(name, params, modules):
    back = convert.from_torch(name, modules)
    assert_same(back, params)
    again = convert.to_torch(name, back)
    assert {m: list(state) for m, state in again.items()} == {
        m: list(state) for m, state in modules.items()
    }
    for module, state in again.items():
        for key, array in state.items():
            assert array.flags.c_contiguous
            np.testing.assert_array_equal(array, modules[module][key], err_msg=key)


def test_every_parameter_has_one_entry(name, params):
    table = convert.entries(name)
    paths = [entry.path for entry in table]
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    assert sorted(paths) == sorted(tuple(key.key for key in path) for path, _ in flat)
    assert len({(entry.module, entry.name) for entry in table}) == len(table)


def test_layouts():
    """Where each axis of a torch array ends up, element by element, once per layout."""
    abstract = jax.eval_shape(models.create("crossfuse").init, jax.random.key(0))
    modules = convert.to_torch("crossfuse", jax.tree.map(lambda a: np.zeros(a.shape), abstract))
    encoder = modules["encoder"]
    encoder["encoder_level1.1.attn.qkv.weight"][5, 7, 0, 0] = 1
    encoder["encoder_level1.1.attn.qkv_dwconv.weight"][9, 0, 1, 2] = 2
    encoder["encoder_level1.1.attn.temperature"][3, 0, 0] = 3
    encoder["encoder_level1.1.norm2.body.bias"][4] = 4
    encoder["baseFeature.attn.qkv2.weight"][11, 13, 0, 2] = 5
    encoder["baseFeature.mlp.dwconv.weight"][17, 1, 2, 0] = 6
    encoder["detailFeature.net.2.theta_rho.bottleneckBlock.5.weight"][6, 8, 0, 0] = 7
    ours = convert.from_torch("crossfuse", modules)["encoder"]
    block, low = ours["blocks"]["at1"], ours["low"]
    assert block["attention"]["expand"][7, 5] == 1
    assert block["attention"]["spatial"][1, 2, 9] == 2
    assert block["attention"]["temperature"][3] == 3
    assert block["norm2"]["bias"][4] == 4
    assert low["attention"]["spatial"][0, 2, 13, 11] == 5
    assert low["feed_forward"]["spatial"][2, 0, 1, 17] == 6
    assert ours["high"]["at2"]["rho"]["project"][8, 6] == 7
    assert sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(ours)) == 7


def test_published_names(name, params, modules):
    """The published checkpoints name modules otherwise and were saved from nn.DataParallel."""
    published = {
        PUBLISHED[module]: {f"module.{key}": array for key, array in state.items()}
        for module, state in modules.items()
    }
    assert_same(convert.from_torch(name, published), params)
    mixed = {**modules, "encoder": {f"module.{k}": v for k, v in modules["encoder"].items()}}
    assert_same(convert.from_torch(name, mixed), params)


def test_float64_and_float16_become_float32(name, params, modules):
    wide = jax.tree.map(lambda a: a.astype(np.float64), modules)
    assert_same(convert.from_torch(name, wide), params)
    narrow = jax.tree.map(lambda a: (a % 64).astype(np.float16), modules)
    assert_same(convert.from_torch(name, narrow), jax.tree.map(lambda a: a % 64, params))


def test_missing_arrays(name, modules):
    module, key = next((m, k) for m, state in modules.items() for k in state)
    del modules[module][key]
    with pytest.raises(ConvertError, match=rf"1 of \d+ arrays are missing, first {module}/{key}"):
        convert.from_torch(name, modules)
    count = len(modules.pop(module)) + 1
    with pytest.raises(ConvertError, match=rf"{count} of .*found: {', '.join(modules)}\)"):
        convert.from_torch(name, modules)
    with pytest.raises(ConvertError, match="modules found: none"):
        convert.from_torch(name, {})


def test_unknown_arrays(name, modules):
    extra = copy.deepcopy(modules)
    extra["encoder"]["head.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ConvertError, match=r"unknown array encoder/head.weight \(1 in all\)"):
        convert.from_torch(name, extra)
    modules["teacher"] = {"a": np.zeros(1), "b": np.zeros(1)}
    with pytest.raises(ConvertError, match=r"unknown array teacher/a \(2 in all\)"):
        convert.from_torch(name, modules)


def test_misshapen_arrays(name, modules):
    module, key = next((m, k) for m, s in modules.items() for k, v in s.items() if v.ndim == 4)
    array = modules[module][key]
    for wrong in (array[:-1], array[..., 0], array.transpose(3, 2, 1, 0), np.float32(1)):
        modules[module][key] = wrong
        with pytest.raises(ConvertError) as error:
            convert.from_torch(name, modules)
        assert f"{module}/{key} has shape {np.shape(wrong)}, needs {array.shape}" in str(error)


def test_a_model_without_a_table():
    with pytest.raises(ConvertError, match=r"no published layout for model 'lite'.*crossfuse"):
        convert.entries("lite")
