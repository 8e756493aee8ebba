"""Scores as an interface: what is undefined, what is refused, batches, jit, direction, symmetry."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfuse import metrics
from jaxfuse.metrics import gray

SIZE = (48, 53)
GRAY = "cddfuse", "crossfuse", "zoo", "vifb", "jaxfuse"
FAST = tuple(n for n in metrics.names("jaxfuse", SIZE) if not n.startswith(("FMI", "VIF")))


def scene(seed: int) -> np.ndarray:
    """Smooth random levels over the whole range."""
    x = np.random.default_rng(seed).random(SIZE)
    for axis in (0, 1):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    return np.round((x - x.min()) / np.ptp(x) * 255).astype(np.uint8)


@functools.cache
def cases() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Fused, visible, infrared of inputs that divide by zero somewhere."""
    a, b, f = scene(0), scene(1), scene(2)
    flat, black = np.full_like(a, 77), np.zeros_like(a)
    return {
        "usual": (f, a, b),
        "fused constant": (flat, a, b),
        "infrared constant": (f, a, flat),
        "sources constant": (f, flat, flat),
        "all constant": (flat, flat, flat),
        "fused is visible": (a, a, b),
        "all equal": (a, a, a),
        "fused black": (black, a, b),
        "all black": (black, black, black),
    }


# What docs/metrics.md says is undefined; an infinite PSNR is listed there too.
UNDEFINED: dict[str, dict[str, str]] = {
    "fused constant": {"all": "CC", "zoo": "QNCIE Qcb", "vifb": "Qcb Qcv"},
    "infrared constant": {"all": "CC SCD", "zoo": "QNCIE Qcb", "vifb": "Qcb Qcv", "jaxfuse": "VIF"},
    "sources constant": {
        "all": "CC SCD",
        "zoo": "Nabf QNCIE Qcb",
        "vifb": "Qcb Qcv",
        "jaxfuse": "Nabf Qabf Qcv VIF",
    },
    "all constant": {
        "all": "CC SCD",
        "zoo": "Nabf QNCIE Qcb",
        "vifb": "Qcb Qcv",
        "jaxfuse": "NMI Nabf Qabf Qcv VIF",
    },
    "fused is visible": {"all": "SCD"},
    "all equal": {"all": "SCD"},
    "fused black": {"all": "CC", "zoo": "QNCIE Qcb", "vifb": "Qcb"},
    "all black": {
        "all": "CC SCD Qabf",
        "cddfuse": "PSNR",
        "crossfuse": "PSNR",
        "zoo": "Nabf QNCIE Qcb VIF",
        "vifb": "Qcb Qcv",
        "jaxfuse": "NMI Nabf Qcv VIF",
    },
}


def chosen(convention: str) -> list[str]:
    """What fits the small scenes, less what costs seconds to compile and is tested elsewhere."""
    if convention == "crossfuse":
        return ["MSE", "PSNR", "SSIM"]
    return [name for name in metrics.names(convention, SIZE) if name != "FMI_gradient"]


@functools.cache
def scores(convention: str) -> dict[str, np.ndarray]:
    batch = [np.stack(x) for x in zip(*cases().values(), strict=True)]
    found = metrics.score(*batch, convention=convention, names=chosen(convention))
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.parametrize("convention", GRAY)
def test_undefined_values_are_nan_and_nothing_else_is(convention: str) -> None:
    known = chosen(convention)
    for number, case in enumerate(cases()):
        entry = UNDEFINED.get(case, {})
        listed = f"{entry.get('all', '')} {entry.get(convention, '')}".split()
        found = {name for name, value in scores(convention).items() if np.isnan(value[number])}
        assert found == set(listed) & set(known), case


@pytest.mark.parametrize("convention", GRAY)
def test_only_psnr_is_ever_infinite(convention: str) -> None:
    infinite = {
        (name, case)
        for name, value in scores(convention).items()
        for case, x in zip(cases(), value, strict=True)
        if np.isinf(x)
    }
    found = {name for name, _ in infinite}
    assert found == {"PSNR"}
    assert ("PSNR", "all equal") in infinite


@pytest.mark.parametrize("convention", GRAY)
def test_values_lie_in_their_range(convention: str) -> None:
    for row in metrics.describe(convention, chosen(convention)):
        finite = scores(convention)[row.metric]
        finite = finite[np.isfinite(finite)]
        assert row.low is None or (finite >= row.low - 1e-5).all(), row.metric
        assert row.high is None or (finite <= row.high + 1e-5).all(), row.metric


def test_a_constant_source_counts_as_one_in_the_vif_of_cddfuse() -> None:
    flat = list(cases()).index("sources constant")
    assert scores("cddfuse")["VIF"][flat] == 2.0


def test_vif_is_the_mean_where_cddfuse_sums() -> None:
    usual = list(cases()).index("usual")
    assert scores("jaxfuse")["VIF"][usual] * 2 == pytest.approx(scores("cddfuse")["VIF"][usual])


def one(*images: np.ndarray) -> dict[str, float]:
    """Scores of one triple; every test that needs some uses this one program."""
    found = metrics.score(*(x[None] for x in images), names=FAST)
    return {name: float(value[0]) for name, value in found.items()}


@functools.cache
def usual(order: tuple[int, int, int]) -> dict[str, float]:
    return one(*(cases()["usual"][i] for i in order))


def test_a_batch_gives_what_its_images_give() -> None:
    for name, value in usual((0, 1, 2)).items():
        assert scores("jaxfuse")[name][0] == pytest.approx(value, rel=2e-6), name


def test_the_sources_may_change_places() -> None:
    swapped = usual((0, 2, 1))
    for name, value in usual((0, 1, 2)).items():
        assert swapped[name] == pytest.approx(value, rel=1e-5), name


def test_float32_is_close_to_float64() -> None:
    names = ["MI", "QNCIE", "SSIM", "Qabf", "Nabf", "Qcv", "Qy"]
    batch = (x[None] for x in cases()["usual"])
    for name, value in metrics.score(*batch, names=names, dtype="float64").items():
        assert value.dtype == np.float64
        assert usual((0, 1, 2))[name] == pytest.approx(float(value[0]), rel=1e-5), name


def test_noise_makes_every_metric_worse_that_looks_at_the_sources() -> None:
    rng = np.random.default_rng(5)
    clean = scene(0)
    noisy = (clean + rng.normal(0, s, SIZE) for s in (2, 40))
    little, much = (one(np.clip(x, 0, 255).astype(np.uint8), clean, clean) for x in noisy)
    compared = 0
    for row in metrics.describe("jaxfuse", FAST):
        # SCD correlates a source with what the other one lacks: here, with noise.
        if metrics.METRICS[row.metric].inputs == "FVI" and row.metric != "SCD":
            better = little[row.metric] > much[row.metric]
            assert better == (row.direction == "higher"), row.metric
            compared += 1
    assert compared >= 15


def test_scores_inside_a_jitted_function() -> None:
    names = ["EN", "SSIM", "Qabf"]
    batch = [jnp.asarray(x[None]) for x in cases()["usual"]]

    @jax.jit
    def loss(f: jax.Array, v: jax.Array, i: jax.Array) -> jax.Array:
        return sum(metrics.score(f, v, i, names=names).values())

    expected = sum(usual((0, 1, 2))[name] for name in names)
    assert float(loss(*batch)[0]) == pytest.approx(expected, rel=1e-5)


def test_scores_of_many_pairs_under_vmap() -> None:
    batch = [np.stack([x, x[::-1]])[:, None] for x in cases()["usual"]]
    mapped = jax.vmap(lambda f, v, i: metrics.score(f, v, i, names=["MI", "SF", "SSIM"]))
    found = mapped(*(jnp.asarray(x) for x in batch))
    for name, value in found.items():
        assert float(value[0, 0]) == pytest.approx(usual((0, 1, 2))[name], rel=1e-5)
        assert value.shape == (2, 1)


def test_colour_scores_are_means_over_channels_but_for_sf() -> None:
    rng = np.random.default_rng(7)
    fused, visible = (rng.integers(0, 256, (2, *SIZE, 3), np.uint8) for _ in range(2))
    infrared = rng.integers(0, 256, (2, *SIZE), np.uint8)
    names = ["EN", "SD", "SF", "RMSE"]
    found = metrics.score(fused, visible, infrared, "vifb_color", names)
    for name in ("EN", "SD", "RMSE"):
        each = [
            metrics.score(fused[..., c], visible[..., c], infrared, "vifb", [name])[name]
            for c in range(3)
        ]
        np.testing.assert_allclose(found[name], np.mean(each, axis=0), rtol=1e-6)
    wide = np.concatenate([fused[..., c] for c in range(3)], axis=2).astype(float)
    squares = (np.diff(wide, axis=1) ** 2).sum((1, 2)) + (np.diff(wide, axis=2) ** 2).sum((1, 2))
    np.testing.assert_allclose(found["SF"], np.sqrt(squares / wide[0].size), rtol=1e-6)


def test_rows_say_what_a_number_is() -> None:
    rows = {row.metric: row for row in metrics.describe("zoo")}
    assert set(rows) == set(metrics.names("zoo"))
    assert rows["MI"].unit == "bits"
    assert rows["TE"].direction == "unclear"
    assert {row.version for row in rows.values()} == {metrics.VERSION}
    assert "Pillow" in rows["EN"].channel
    assert {row.direction for row in metrics.describe("jaxfuse")} == {"higher", "lower"}


def test_our_own_convention_defines_everything() -> None:
    assert metrics.names("jaxfuse") == tuple(metrics.METRICS)
    assert set(metrics.names("jaxfuse")) - set(metrics.names("jaxfuse", (100, 500))) == {"MS_SSIM"}


SMALL = np.full((1, 8, 9), 100, np.uint8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"convention": "voodoo"}, "use one of jaxfuse, cddfuse"),
        ({"names": ["EN", "SSIM"]}, r"SSIM \(jaxfuse\) needs images of 11 pixels"),
        ({"names": ["Quality"]}, "no metric 'Quality'"),
        ({"names": []}, "no metric named"),
        ({"names": ["Qy"], "convention": "vifb"}, "vifb does not define Qy"),
        ({"visible": SMALL[:, 1:]}, "visible is .* nothing is resized"),
        ({"infrared": SMALL[0]}, "expects"),
        ({"fused": SMALL[..., None]}, "convert with metrics.to_gray"),
        ({"visible": np.stack([SMALL] * 3, -1)}, "convert with metrics.to_gray"),
        ({"convention": "vifb_color"}, "expects"),
        ({"fused": SMALL / np.float32(255)}, "multiply by 255"),
        ({"fused": SMALL * np.float32(np.nan)}, "without NaN"),
        ({"infrared": SMALL * np.float32(3)}, "give grey levels 0..255"),
        ({"fused": SMALL.astype(np.int64)}, "dtype int64"),
        ({"fused": SMALL[:, :0]}, "expects"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], told: str) -> None:
    given = {"fused": SMALL, "visible": SMALL, "infrared": SMALL, "names": ["EN"], **change}
    with pytest.raises(ValueError, match=told):
        metrics.score(**given)  # type: ignore[arg-type]


def test_other_precisions_are_refused(unchecked: None) -> None:
    with pytest.raises(ValueError, match="use float32 or float64"):
        metrics.score(SMALL, SMALL, SMALL, names=["EN"], dtype="float16")  # type: ignore[arg-type]


def test_a_name_is_not_a_list_of_names() -> None:
    with pytest.raises(TypeError, match="give a list"):
        metrics.score(SMALL, SMALL, SMALL, names="EN")


def test_opencv_gray_of_ties() -> None:
    """Colours whose exact luma is a half: only OpenCV's order of roundings gets them all."""
    cv2 = pytest.importorskip("cv2")
    r, g, b = np.meshgrid(*[np.arange(256)] * 3, indexing="ij")
    ties = (299 * r + 587 * g + 114 * b) % 1000 == 500
    colours = np.stack([x[ties] for x in (r, g, b)], -1).astype(np.uint8)
    colours = colours[: len(colours) // 64 * 64].reshape(-1, 64, 3)
    blue_first = np.ascontiguousarray(colours[..., ::-1], np.float32)
    wanted = np.round(cv2.cvtColor(blue_first, cv2.COLOR_BGR2GRAY))
    assert np.array_equal(metrics.to_gray(colours, "cddfuse"), wanted)


def test_gray_stays_gray_and_our_luma_is_not_rounded() -> None:
    level = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for convention in GRAY:
        assert np.array_equal(metrics.to_gray(level[..., None], convention), level)
        same = metrics.to_gray(np.stack([level] * 3, -1), convention)
        np.testing.assert_allclose(same, level, atol=1e-4)
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 1
    assert metrics.to_gray(red, "jaxfuse")[0, 0] == np.float32(0.299)
    assert metrics.to_gray(red, "zoo")[0, 0] == 0.0
    assert set(gray.CHANNELS) == set(metrics.CONVENTIONS)


@pytest.mark.parametrize(
    ("image", "convention", "told"),
    [
        (np.zeros((4, 4, 3), np.uint8), "vifb_color", "give metrics.score the colour images"),
        (np.zeros((4, 4, 3), np.uint8), "mine", "use one of"),
        (np.zeros((4,), np.uint8), "zoo", "last axis"),
        (np.zeros((4, 4, 2), np.uint8), "zoo", "last axis"),
        (np.zeros((4, 4, 3), np.int16), "zoo", "dtype int16"),
        (np.full((4, 4, 3), 300.0), "zoo", "outside 0..255"),
        (np.full((4, 4, 1), np.nan), "zoo", "outside 0..255"),
    ],
)
def test_gray_refuses(image: np.ndarray, convention: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        metrics.to_gray(image, convention)


def test_gray_runs_on_the_host() -> None:
    with pytest.raises(TypeError, match="runs on the host"):
        jax.jit(lambda x: metrics.to_gray(x, "zoo"))(jnp.zeros((4, 4, 3)))
