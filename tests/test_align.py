"""Top-K selection and gamma: float64 oracles, the published run, and any number of devices."""

from __future__ import annotations

import inspect
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfuse.ops import align

D = 8


def random_bytes(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def oracle_top_k(means: np.ndarray, target: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    d = np.abs(means.astype(np.float64) - target).sum(-1)
    order = np.argsort(d, kind="stable")[:k]
    return order, d[order]


def corrected_mean(counts: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    levels = np.arange(256) / 255
    curve = 255 * levels[None, :] ** (1 / np.asarray(gamma, np.float64)[:, None])
    return (counts * curve).sum(1) / counts.sum(1)


def test_means_are_exact():
    patches = random_bytes((5, 64, 64, 3))
    expected = patches.astype(np.float64).mean((1, 2))
    np.testing.assert_allclose(align.channel_means(patches), expected, atol=2e-5)
    as_floats = align.channel_means(jnp.asarray(patches, jnp.float32) / 255)
    np.testing.assert_allclose(np.asarray(as_floats) * 255, expected, atol=1e-4)


def test_distances():
    means = random_bytes((9, 3)).astype(np.float32)
    target = np.array([10.0, 200.0, 30.0], np.float32)
    expected = np.abs(means.astype(np.float64) - target).sum(1)
    found = align.distances(jnp.asarray(means), jnp.asarray(target))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("levels", [4, 256])
@pytest.mark.parametrize("k", [1, 17, 200])
def test_selection_is_a_stable_sort(levels, k):
    means = np.random.default_rng(0).integers(0, levels, (200, 3)).astype(np.float32)
    target = np.array([1.0, 2.0, 2.0], np.float32)
    order, d = oracle_top_k(means, target, k)
    found = jax.jit(partial(align.select_top_k, k=k))(jnp.asarray(means), jnp.asarray(target))
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.distances, d.astype(np.float32))
    assert found.indices.dtype == jnp.int32


def test_patches_and_rows_that_are_not_numbers_come_last():
    patches = np.full((3, 2, 2, 1), 0.1, np.float32)
    patches[0, 1, 0], patches[1] = np.nan, 0.7
    result = align.align_top_k(patches, np.array([60.0]), 2)
    np.testing.assert_array_equal(result.indices, [2, 1])
    assert np.isfinite(result.patches).all()
    means = jnp.array([[jnp.nan], [3.0], [jnp.inf], [1.0]])
    found = align.select_top_k(means, jnp.array([0.0]), 4)
    np.testing.assert_array_equal(found.indices, [3, 1, 0, 2])
    np.testing.assert_array_equal(found.distances, [1.0, 3.0, np.inf, np.inf])


@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize("k", [3, 16, 40])
def test_selection_is_the_same_on_eight_devices(devices, levels, k):
    """Two levels make nearly every distance a tie; k = 40 takes more than one device's rows."""
    means = np.random.default_rng(1).integers(0, levels, (D * 8, 3)).astype(np.float32)
    target = jnp.array([0.0, 1.0, 1.0])
    order, d = oracle_top_k(means, np.asarray(target), k)
    select = partial(align.select_top_k, k=k, axis_name="data")
    everywhere = jax.pmap(select, axis_name="data", in_axes=(0, None), devices=devices)(
        means.reshape(D, 8, 3), target
    )
    np.testing.assert_array_equal(everywhere.indices, np.tile(order, (D, 1)))
    np.testing.assert_array_equal(everywhere.distances, np.tile(d, (D, 1)))
    mesh = Mesh(np.array(devices), ("data",))
    sharded = jax.device_put(means, NamedSharding(mesh, PartitionSpec("data")))
    for outer in (
        align.select_top_k_sharded,
        jax.jit(align.select_top_k_sharded, static_argnums=(2, 3)),
    ):
        found = outer(sharded, target, k, mesh)
        np.testing.assert_array_equal(found.indices, order)
        np.testing.assert_array_equal(found.distances, d)


def test_sharded_selection_gathers_candidates_only(devices):
    mesh = Mesh(np.array(devices), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    means = jax.ShapeDtypeStruct((D * 1000, 3), jnp.float32, sharding=rows)
    target = jax.ShapeDtypeStruct((3,), jnp.float32)
    text = align.select_top_k_sharded.lower(means, target, 5, mesh).compile().as_text()
    assert "all-gather" in text
    assert f"[{D * 5}]" in text
    assert "[8000" not in text


@pytest.mark.parametrize("channels", [1, 3])
def test_histogram_counts_every_pixel(channels):
    patches = random_bytes((4, 9, 7, channels)) // np.uint8(3)
    expected = [np.bincount(patches[..., c].ravel(), minlength=256) for c in range(channels)]
    for given in (patches, jnp.asarray(patches, jnp.float32) / 255):
        counts = align.histogram(given)
        assert counts.dtype == jnp.float32
        np.testing.assert_array_equal(counts, expected)


def test_histogram_of_chosen_patches_and_of_values_between_levels():
    patches = random_bytes((6, 4, 4, 3))
    mask = np.array([True, False, True, True, False, False])
    expected = align.histogram(patches[mask])
    for weights in (mask, mask.astype(np.int32), mask.astype(np.float32)):
        np.testing.assert_array_equal(align.histogram(patches, weights), expected)
    np.testing.assert_allclose(
        align.histogram(patches, mask * np.float32(0.25)), 0.25 * np.asarray(expected)
    )
    between = jnp.array([0.0, 0.4, 0.6, 254.4, 300.0, -3.0]).reshape(1, 6, 1, 1) / 255
    counts = np.asarray(align.histogram(between))[0]
    assert {level: int(counts[level]) for level in np.flatnonzero(counts)} == {
        0: 3,
        1: 1,
        254: 1,
        255: 1,
    }


@pytest.mark.parametrize("kind", ["flat", "dark", "bright", "two levels", "mostly fixed"])
@pytest.mark.parametrize("where", [0.003, 0.1, 0.5, 0.9, 0.997])
def test_gamma_reaches_every_target_inside_the_range(kind, where):
    level = np.arange(256.0)
    counts = {
        "flat": np.ones(256),
        "dark": np.round(1e5 * np.exp(-level / 4)),
        "bright": np.round(1e5 * np.exp((level - 255) / 4)),
        "two levels": (level == 1) + (level == 254.0),
        "mostly fixed": 1.0 + 200 * (level == 0) + 300 * (level == 255),
    }[kind][None, :]
    lowest = 255 * counts[0, 255] / counts.sum()
    highest = 255 * counts[0, 1:].sum() / counts.sum()
    target = np.array([lowest + where * (highest - lowest)], np.float32)
    fit = align.fit_gamma_report(jnp.asarray(counts, jnp.float32), jnp.asarray(target))
    assert bool(fit.reached[0])
    assert float(fit.error[0]) < 1e-3
    np.testing.assert_allclose(corrected_mean(counts, fit.gamma), target, atol=1e-3)


def test_gamma_is_one_where_the_mean_stays_or_cannot_get_there():
    counts = np.zeros((8, 256), np.float32)
    counts[0, 0] = counts[1, 255] = counts[2, 100] = counts[3, 100] = counts[7, 128] = 50
    counts[4, [0, 200]] = 50  # cannot pass 127.5
    counts[5, [200, 255]] = 50  # cannot go below 127.5
    target = np.array([90, 90, 0, 255, 127.5, 127.5, 90, 128], np.float32)  # 6: nothing counted
    fit = align.fit_gamma_report(jnp.asarray(counts), jnp.asarray(target))
    np.testing.assert_array_equal(fit.gamma[:7], 1.0)
    np.testing.assert_allclose(fit.gamma[7], 1.0, atol=1e-5)
    np.testing.assert_array_equal(fit.reached, [False] * 7 + [True])
    errors = [90, 165, 100, 155, 27.5, 100, 90, 0]
    np.testing.assert_allclose(fit.error, errors, atol=1e-3)


def test_fit_compiles_and_maps_over_batches():
    counts = jnp.asarray(np.random.default_rng(0).random((4, 3, 256)), jnp.float32)
    target = jnp.asarray(np.random.default_rng(1).uniform(60, 200, (4, 3)), jnp.float32)
    batched = jax.jit(jax.vmap(align.fit_gamma))(counts, target)
    single = [align.fit_gamma(c, t) for c, t in zip(counts, target, strict=True)]
    np.testing.assert_allclose(batched, jnp.stack(single), rtol=1e-5)


def test_apply_gamma_matches_float64_and_keeps_the_ends():
    patches = random_bytes((2, 5, 4, 3))
    patches[0, 0, 0], patches[0, 0, 1] = 0, 255
    gamma = np.array([0.5, 1.0, 2.2], np.float32)
    expected = 255 * (patches / 255.0) ** (1 / gamma.astype(np.float64))
    levels = align.apply_gamma(patches, jnp.asarray(gamma))
    np.testing.assert_allclose(levels, expected, atol=2e-4)
    given = patches.astype(np.float32) / 255
    unit = np.asarray(align.apply_gamma(given, jnp.asarray(gamma)))
    np.testing.assert_allclose(unit * 255, expected, atol=2e-4)
    np.testing.assert_array_equal(unit[0, 0, 0], 0.0)
    np.testing.assert_array_equal(unit[0, 0, 1], 1.0)
    np.testing.assert_array_equal(unit[..., 1], given[..., 1])


def test_apply_gamma_has_finite_gradients_at_black():
    patches = jnp.array([0.0, 0.25, 1.0]).reshape(1, 3, 1, 1)

    def total(x, gamma):
        return align.apply_gamma(x, gamma).sum()

    by_value, by_gamma = jax.grad(total, argnums=(0, 1))(patches, jnp.array([2.0]))
    np.testing.assert_allclose(by_value.ravel(), [0.0, 1.0, 0.5], rtol=1e-6)
    # d/dg 0.25 ** (1 / g) = -0.5 * log(0.25) / g ** 2
    np.testing.assert_allclose(by_gamma, [-0.5 * np.log(0.25) / 4], rtol=1e-5)


@pytest.fixture
def pool() -> dict[str, np.ndarray]:
    """64 patches of very different brightness, two of them equal, and what belongs to them."""
    rng = np.random.default_rng(3)
    brightness = rng.uniform(0.2, 1.0, (D * 8, 1, 1, 3))
    patches = (rng.integers(0, 256, (D * 8, 6, 5, 3)) * brightness).astype(np.uint8)
    patches[40] = patches[9]
    return {
        "rgb": patches.astype(np.float32) / 255,
        "bytes": patches,
        "infrared": rng.random((D * 8, 6, 5, 1), np.float32),
        "number": np.arange(D * 8, dtype=np.int32),
    }


SCALARS = ("indices", "distances", "gamma", "error", "reached")
TARGET = np.array([120.0, 100.0, 90.0], np.float32)


def test_alignment_moves_the_means_onto_the_target(pool):
    run = jax.jit(partial(align.align_top_k, k=16))
    companions = (pool["infrared"], pool["number"])
    result = run(pool["rgb"], TARGET, companions=companions)
    order, _ = oracle_top_k(pool["bytes"].astype(np.float64).mean((1, 2)), TARGET, 16)
    np.testing.assert_array_equal(result.indices, order)
    np.testing.assert_array_equal(result.companions[0], pool["infrared"][order])
    np.testing.assert_array_equal(result.companions[1], order)
    before = pool["bytes"][order].astype(np.float64).mean((0, 1, 2))
    after = np.asarray(result.patches, np.float64).mean((0, 1, 2)) * 255
    assert np.abs(before - TARGET).max() > 0.5
    np.testing.assert_allclose(after, TARGET, atol=2e-3)
    assert result.reached.all()
    from_bytes = run(pool["bytes"], TARGET, companions=companions)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-5), from_bytes, result)


@pytest.mark.parametrize("wrapper", ["pmap", "shard_map"])
@pytest.mark.parametrize("image", ["rgb", "bytes"])
def test_alignment_is_the_same_on_eight_devices(devices, pool, wrapper, image):
    arrays = (pool[image], pool["infrared"], pool["number"])
    single = align.align_top_k(arrays[0], TARGET, 16, arrays[1:])

    def run(rgb, infrared, number):
        return align.align_top_k(rgb, TARGET, 16, (infrared, number), axis_name="data")

    if wrapper == "pmap":
        split = [x.reshape(D, 8, *x.shape[1:]) for x in arrays]
        whole = jax.pmap(run, axis_name="data", devices=devices)(*split)
        for name in SCALARS:
            found = np.asarray(getattr(whole, name))
            assert (found == found[:1]).all(), name
        whole = whole._replace(**{name: getattr(whole, name)[0] for name in SCALARS})
    else:
        mesh, rows = Mesh(np.array(devices), ("data",)), PartitionSpec("data")
        everywhere = PartitionSpec()
        specs = align.Aligned(
            everywhere, everywhere, everywhere, rows, (rows, rows), everywhere, everywhere
        )
        mapped = jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=specs, check_vma=False)
        whole = jax.jit(mapped)(*arrays)
    # Not nearly: tied patches must not change places because a program was compiled differently.
    np.testing.assert_array_equal(whole.indices, single.indices)
    np.testing.assert_array_equal(whole.distances, single.distances)
    np.testing.assert_allclose(whole.gamma, single.gamma, rtol=1e-6)
    np.testing.assert_array_equal(whole.reached, [True] * 3)
    np.testing.assert_array_less(whole.error, 1e-3)

    def join(rows: jax.Array) -> np.ndarray:
        return np.asarray(rows).reshape(16, *rows.shape[2 if wrapper == "pmap" else 1 :])

    np.testing.assert_allclose(join(whole.patches), single.patches, atol=2e-7)
    for found, expected in zip(whole.companions, single.companions, strict=True):
        np.testing.assert_array_equal(join(found), expected)
        assert found.dtype == expected.dtype


def cut(folder: Path, names: list[str], size: int, stride: int) -> tuple[np.ndarray, list[str]]:
    """uint8 BGR patches of the published grid and their published names."""
    cv2 = pytest.importorskip("cv2")
    patches, labels = [], []
    for name in names:
        image = cv2.imread(str(folder / name))
        for y in range(0, image.shape[0] - size + 1, stride):
            for x in range(0, image.shape[1] - size + 1, stride):
                patches.append(image[y : y + size, x : x + size])
                labels.append(f"{Path(name).stem}_patch_{x}_{y}.png")
    return np.stack(patches), labels


def test_published_selection_and_a_better_gamma(shared):
    published = json.loads((shared / "golden" / "topk_reference.json").read_text())
    size, stride, k = published["patch"][0], published["stride"], published["k"]
    data = shared / "data"
    target, _ = cut(data / "roadscene" / "vi", published["target_images"], size, stride)
    external, labels = cut(data / "msrs" / "vi", published["external_images"], size, stride)
    assert (len(target), len(external)) == (published["n_target"], published["n_external"])
    mu = align.channel_means(target).mean(axis=0)
    np.testing.assert_allclose(mu, published["target_means"], atol=1e-3)
    found = align.distances(align.channel_means(external), mu)
    np.testing.assert_allclose(found, published["differences"], rtol=1e-5, atol=1e-3)
    run = jax.jit(partial(align.align_top_k, k=k))
    for patches in (external, external.astype(np.float32) / 255):
        result = run(patches, mu)
        assert [labels[i] for i in result.indices] == published["selected"]
        kept = align.channel_means(external[np.asarray(result.indices)]).mean(axis=0)
        np.testing.assert_allclose(kept, published["selected_means"], atol=1e-3)
        after = np.asarray(result.patches, np.float64).mean((0, 1, 2)) * 255
        error = np.abs(after - np.asarray(published["target_means"]))
        assert published["alignment_loss"] > 12
        assert error.max() < 0.01, error
        assert result.reached.all()


MEANS = np.zeros((5, 3), np.float32)
PATCHES = np.zeros((5, 4, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (align.select_top_k, (MEANS, MEANS[0], 6), "k = 6 of a pool of 5.*1 to 5"),
        (align.select_top_k, (MEANS, MEANS[0], 0), "k = 0 of a pool of 5"),
        (align.distances, (MEANS, MEANS[0, :2]), r"\(5, 3\).*\(2,\)"),
        (align.channel_means, (PATCHES.astype(np.int32),), "int32.*uint8, or floats"),
        (align.histogram, (PATCHES, np.ones(4, np.float32)), r"\(4,\) for 5 patches"),
        (align.fit_gamma_report, (MEANS, MEANS[0]), r"\(5, 3\).*256"),
        (align.apply_gamma, (PATCHES, np.ones(2, np.float32)), r"\(2,\).*one per channel"),
        (align.align_top_k, (PATCHES, MEANS[0], 2, (MEANS[:3],)), r"\(3, 3\) for 5 patches"),
    ],
)
def test_errors_name_the_value_and_the_remedy(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(function)(*arguments)


def test_errors_of_the_sharded_forms(devices):
    mesh = Mesh(np.array(devices), ("data",))
    with pytest.raises(ValueError, match="12 rows over 8 devices"):
        align.select_top_k_sharded(jnp.zeros((12, 3)), jnp.zeros(3), 4, mesh)
    with pytest.raises(ValueError, match="k = 17 of a pool of 16"):
        align.select_top_k_sharded(jnp.zeros((16, 3)), jnp.zeros(3), 17, mesh)
    run = partial(align.align_top_k, target_mean_grey=TARGET, k=12, axis_name="data")
    with pytest.raises(ValueError, match=r"k = 12 over 8 devices.*multiple of 8"):
        jax.pmap(run, axis_name="data", devices=devices)(np.zeros((8, 2, 4, 4, 3), np.float32))


@pytest.mark.parametrize("value", [200.0, 9.0, -0.1, 1.0001, np.nan, np.inf])
def test_means_of_values_outside_the_unit_range_are_none(value):
    """Levels 0 to 255 given as floats must not come out as some other number."""
    patches = np.full((2, 64, 64, 3), 0.25, np.float32)
    patches[1, 5, 7, 1] = value
    means = np.asarray(align.channel_means(patches))
    assert np.isnan(means[1, 1])
    np.testing.assert_allclose(means[0], 0.25, atol=1e-5)
    np.testing.assert_allclose(means[1, [0, 2]], 0.25, atol=1e-5)
