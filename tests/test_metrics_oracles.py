"""The definitions of the `jaxfuse` convention against slow NumPy versions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest

from jaxfuse import metrics

HEIGHT, WIDTH = 15, 18
Oracle = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


@functools.cache
def triple() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fused, visible and infrared levels, with flat parts and few levels, so that bins fill."""
    rng = np.random.default_rng(3)
    visible = rng.integers(0, 6, (HEIGHT, WIDTH)) * 40.0 + 7
    infrared = np.sort(rng.integers(0, 6, (HEIGHT, WIDTH)) * 50.0, axis=1)
    visible[:5, :7], infrared[8:, 10:] = 100, 60
    fused = np.round(0.6 * visible + 0.4 * infrared)
    fused[10:, :6] = visible[10:, :6]
    return fused, visible, infrared


@functools.cache
def scores() -> dict[str, float]:
    names = metrics.names("jaxfuse", size=(HEIGHT, WIDTH))
    found = metrics.score(*(x[None] for x in triple()), names=names, dtype="float64")
    return {name: float(value[0]) for name, value in found.items()}


def shares(x: np.ndarray) -> np.ndarray:
    return np.bincount(x.astype(int).ravel(), minlength=256) / x.size


def joint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    pairs = 256 * x.astype(int) + y.astype(int)
    return np.bincount(pairs.ravel(), minlength=65536).reshape(256, 256) / x.size


def entropy(p: np.ndarray) -> float:
    return -float(sum(v * np.log2(v) for v in p.ravel() if v > 0))


def information(x: np.ndarray, y: np.ndarray) -> float:
    return entropy(shares(x)) + entropy(shares(y)) - entropy(joint(x, y))


def cross_entropy(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    q = shares(f)
    total = 0.0
    for s in (v, i):
        total += sum(p * np.log2(p / r) for p, r in zip(shares(s), q, strict=True) if p and r)
    return float(total) / 2


def tsallis(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    q, result = 1.85, 0.0
    for s in (v, i):
        p, a, b = joint(s, f), shares(s), shares(f)
        ratio = sum(
            p[k, m] ** q / (a[k] * b[m]) ** (q - 1) for k, m in zip(*np.nonzero(p), strict=True)
        )
        result += (1 - ratio) / (1 - q)
    return result


def nonlinear_correlation(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    r = np.eye(3)
    for a, b, x, y in ((0, 1, v, i), (0, 2, v, f), (1, 2, i, f)):
        r[a, b] = r[b, a] = information(x, y) / 8
    values = np.linalg.eigvalsh(r) / 3
    return 1 + float(sum(x * np.log(x) for x in values)) / np.log(256)


def normalised_information(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    h = lambda x: entropy(shares(x))  # noqa: E731
    return 2 * sum(information(f, s) / (h(f) + h(s)) for s in (v, i))


def spatial_frequency(f: np.ndarray, *_: np.ndarray) -> float:
    return float(
        np.sqrt((np.diff(f, axis=0) ** 2).sum() / f.size + (np.diff(f) ** 2).sum() / f.size)
    )


def average_gradient(f: np.ndarray, *_: np.ndarray) -> float:
    dy, dx = np.diff(f, axis=0)[:, :-1], np.diff(f, axis=1)[:-1]
    return float(np.mean(np.sqrt((dx**2 + dy**2) / 2)))


def sobel(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = np.pad(x, 1, mode="edge")
    h, w = x.shape
    gx, gy = np.zeros_like(x), np.zeros_like(x)
    for k, weight in enumerate((1, 2, 1)):
        gx += weight * (p[k : k + h, 2:] - p[k : k + h, :-2])
        gy += weight * (p[2:, k : k + w] - p[:-2, k : k + w])
    return gx, gy


def edge_intensity(f: np.ndarray, *_: np.ndarray) -> float:
    return float(np.mean(np.hypot(*sobel(f))))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def edge_preservation(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    """Pixel by pixel; edges are lines, so that angles differ by a quarter turn at most."""
    kept = weight = 0.0
    fx, fy = sobel(f)
    for s in (v, i):
        sx, sy = sobel(s)
        for at in np.ndindex(f.shape):
            gs, gf = np.hypot(sx[at], sy[at]), np.hypot(fx[at], fy[at])
            ratio = 1.0 if gs == gf else min(gs, gf) / max(gs, gf)
            # A level neighbourhood has the angle pi / 2, as a vertical gradient has.
            angles = [
                np.arctan2(y, x) if x else np.pi / 2
                for x, y in ((sx[at], -sy[at]), (fx[at], -fy[at]))
            ]
            turn = abs(angles[0] - angles[1]) % np.pi
            align = 1 - min(turn, np.pi - turn) / (np.pi / 2)
            q = (
                0.9994
                / (1 + np.exp(-15 * (ratio - 0.5)))
                * 0.9879
                / (1 + np.exp(-22 * (align - 0.8)))
            )
            kept, weight = kept + q * gs, weight + gs
    return kept / weight


def windows(x: np.ndarray, n: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, (n, n))


def ssim_map(x: np.ndarray, y: np.ndarray, n: int, sigma: float, top: float) -> np.ndarray:
    line = np.exp(-0.5 * ((np.arange(n) - n // 2) / sigma) ** 2)
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    ave = lambda z: (windows(z, n) * kernel).sum((-2, -1))  # noqa: E731
    mx, my, c1, c2 = ave(x), ave(y), (0.01 * top) ** 2, (0.03 * top) ** 2
    sx, sy, sxy = ave(x * x) - mx**2, ave(y * y) - my**2, ave(x * y) - mx * my
    return (2 * mx * my + c1) * (2 * sxy + c2) / ((mx**2 + my**2 + c1) * (sx + sy + c2))


def ssim(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    return float(np.mean([ssim_map(s, f, 11, 1.5, 255).mean() for s in (v, i)]))


def yang(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    vf, if_, vi = (ssim_map(a, b, 7, 1.5, 255) for a, b in ((v, f), (i, f), (v, i)))
    line = np.exp(-0.5 * ((np.arange(7) - 3) / 1.5) ** 2)
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    ave = lambda z: (windows(z, 7) * kernel).sum((-2, -1))  # noqa: E731
    sv, si = (np.round(ave(s * s) - ave(s) ** 2, 9) for s in (v, i))
    share = np.divide(si, si + sv, out=np.full_like(si, 0.5), where=si + sv > 0)
    return float(np.mean(np.where(vi >= 0.75, share * if_ + (1 - share) * vf, np.maximum(vf, if_))))


def feature_information(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    """Window by window; the joint distribution from the cumulated ones at Frechet's bounds."""

    def distribution(window: np.ndarray) -> np.ndarray:
        p = window.T.ravel() - window.min()
        return p / p.sum() if p.any() else np.full(9, 1 / 9)

    def shared(a: np.ndarray, b: np.ndarray) -> float:
        if np.array_equal(a, b):
            return 1.0
        p, q = distribution(a), distribution(b)
        c = 0.0 if np.ptp(p) == 0 or np.ptp(q) == 0 else float(np.corrcoef(p, q)[0, 1])
        cp, cq = np.cumsum(p)[:, None], np.cumsum(q)[None]
        bound = np.minimum(cp, cq) if c >= 0 else np.maximum(cp + cq - 1, 0)
        k = np.arange(9)
        sd = [np.sqrt(r @ k**2 - (r @ k) ** 2) for r in (p, q)]
        cov = (bound - cp * cq).sum()
        weight = c * sd[0] * sd[1] / cov if c and sd[0] * sd[1] > 0 else 0.0
        mixed = weight * np.diff(np.diff(np.pad(bound, ((1, 0), (1, 0))), axis=0), axis=1)
        mixed = mixed + (1 - weight) * np.outer(p, q)
        h = lambda r: -sum(x * np.log2(abs(x)) for x in r.ravel() if x)  # noqa: E731
        return 2 * (h(p) + h(q) - h(mixed)) / (h(p) + h(q)) if h(p) + h(q) > 0 else 0.0

    total = 0.0
    for s in (v, i):
        pairs = zip(windows(s, 3).reshape(-1, 3, 3), windows(f, 3).reshape(-1, 3, 3), strict=True)
        total += float(np.mean([shared(a, b) for a, b in pairs])) / 2
    return total


def feature_information_of_slopes(*images: np.ndarray) -> float:
    return feature_information(*(np.gradient(x, axis=1) for x in images))


def contrast_preservation(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    """Everything as dense sums: the filter by its frequencies, the two Gaussians pixel by pixel."""
    h, w = f.shape
    rows, columns = np.fft.fftfreq(h) * h, np.fft.fftfreq(w) * w
    r = np.hypot(rows[:, None], columns[None]) / 15
    response = np.exp(-((r / 15.3870) ** 2)) - 0.7622 * np.exp(-((r / 1.3456) ** 2))

    def masked(x: np.ndarray) -> np.ndarray:
        seen = np.pad(np.fft.ifft2(np.fft.fft2(x) * response).real, 15, mode="edge")
        k = np.arange(-15, 16)
        squared = k[:, None] ** 2 + k[None] ** 2
        narrow, wide = (
            (windows(seen, 31) * np.exp(-squared / (2 * s * s)) / (2 * np.pi * s * s)).sum((-2, -1))
            for s in (2, 4)
        )
        c = abs(narrow / wide - 1)
        return c**3 / (c**2 + 1e-4) + 1e-9

    cf, cv, ci = masked(f), masked(v), masked(i)
    kept = [np.minimum(c, cf) / np.maximum(c, cf) for c in (cv, ci)]
    return float(np.mean((cv**2 * kept[0] + ci**2 * kept[1]) / (cv**2 + ci**2)))


def perceived_error(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    """Region by region of 16 x 16, those at the border smaller."""
    h, w = f.shape
    rows, columns = np.fft.fftfreq(h) * h, np.fft.fftfreq(w) * w
    r = np.hypot(rows[:, None], columns[None]) / 4
    response = 2.6 * (0.0192 + 0.144 * r) * np.exp(-((0.144 * r) ** 1.1))
    weights = weighted = 0.0
    for s in (v, i):
        seen = np.fft.ifft2(np.fft.fft2(s - f) * response).real
        gradient = np.hypot(*sobel(s))
        for y in range(0, h, 16):
            for x in range(0, w, 16):
                salience = (gradient[y : y + 16, x : x + 16] ** 5).sum()
                weights += salience
                weighted += salience * (seen[y : y + 16, x : x + 16] ** 2).mean()
    return weighted / weights


def squared_error(f: np.ndarray, v: np.ndarray, i: np.ndarray) -> float:
    return float(np.mean((v - f) ** 2) + np.mean((i - f) ** 2)) / 2


ORACLES: dict[str, Oracle] = {
    "EN": lambda f, v, i: entropy(shares(f)),
    "CE": cross_entropy,
    "MI": lambda f, v, i: information(f, v) + information(f, i),
    "NMI": normalised_information,
    "QNCIE": nonlinear_correlation,
    "TE": tsallis,
    "EI": edge_intensity,
    "SD": lambda f, v, i: float(f.std()),
    "SF": spatial_frequency,
    "AG": average_gradient,
    "CC": lambda f, v, i: (correlation(v, f) + correlation(i, f)) / 2,
    "SCD": lambda f, v, i: correlation(v, f - i) + correlation(i, f - v),
    "MSE": squared_error,
    "RMSE": lambda f, v, i: (np.sqrt(np.mean((v - f) ** 2)) + np.sqrt(np.mean((i - f) ** 2))) / 2,
    "PSNR": lambda f, v, i: 10 * np.log10(255**2 / squared_error(f, v, i)),
    "SSIM": ssim,
    "Qabf": edge_preservation,
    "Qcb": contrast_preservation,
    "Qcv": perceived_error,
    "Qy": yang,
    "FMI_pixel": feature_information,
    "FMI_gradient": feature_information_of_slopes,
}


@pytest.mark.parametrize("name", ORACLES)
def test_a_metric_is_what_its_formula_says(name: str) -> None:
    assert scores()[name] == pytest.approx(ORACLES[name](*triple()), rel=1e-9, abs=1e-12)


def test_every_metric_has_an_oracle_or_a_golden_value() -> None:
    """VIF and MS_SSIM need larger images and have tests of their own; Nabf is the evaluator's."""
    assert set(metrics.METRICS) - set(ORACLES) == {"VIF", "MS_SSIM", "Nabf"}
    definitions = metrics.METRICS["Nabf"].definitions
    assert definitions["jaxfuse"].compute is definitions["zoo"].compute


def test_ssim_of_crossfuse_in_float64() -> None:
    """Uniform 7 x 7, covariance of samples, range 1 on levels to 255, sum of the sources."""
    fused, *sources = triple()
    ave = lambda z: windows(z, 7).mean((-2, -1))  # noqa: E731
    c1, c2, wanted = 0.01**2, 0.03**2, 0.0
    for s in sources:
        x, y = s, fused
        sx, sy = (windows(z, 7).var((-2, -1), ddof=1) for z in (x, y))
        sxy = (ave(x * y) - ave(x) * ave(y)) * 49 / 48
        top = (2 * ave(x) * ave(y) + c1) * (2 * sxy + c2)
        wanted += float(np.mean(top / ((ave(x) ** 2 + ave(y) ** 2 + c1) * (sx + sy + c2))))
    batch = (x[None] for x in triple())
    found = metrics.score(*batch, convention="crossfuse", names=["SSIM"], dtype="float64")
    assert float(found["SSIM"][0]) == pytest.approx(wanted, rel=1e-9)


def test_multi_scale_ssim_is_what_its_formula_says() -> None:
    """Wang et al., 2003: contrast-structure at five scales, luminance at the last; mean of both."""
    from scipy.signal import convolve2d

    x = np.arange(11) - 5.0
    line = np.exp(-0.5 * (x / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    exponents = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    rng = np.random.default_rng(5)
    base = rng.random((181, 195)).cumsum(0).cumsum(1)
    base = 255 * (base - base.min()) / np.ptp(base)
    images = [np.rint(np.clip(base + rng.normal(0, s, base.shape), 0, 255)) for s in (5, 20, 30)]

    def local(a: np.ndarray) -> np.ndarray:
        return convolve2d(a, window, mode="valid")

    def halved(a: np.ndarray) -> np.ndarray:
        h, w = (n - n % 2 for n in a.shape)
        return a[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3))

    def one(a: np.ndarray, b: np.ndarray) -> float:
        product = 1.0
        for scale, exponent in enumerate(exponents):
            if scale:
                a, b = halved(a), halved(b)
            ma, mb = local(a), local(b)
            va, vb, c = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
            similar = (2 * c + 58.5225) / (va + vb + 58.5225)
            if scale == 4:
                similar = similar * (2 * ma * mb + 6.5025) / (ma**2 + mb**2 + 6.5025)
            product *= max(similar.mean(), 0.0) ** exponent
        return product

    fused, visible, infrared = images
    wanted = (one(visible, fused) + one(infrared, fused)) / 2
    found = metrics.score(*(image[None] for image in images), names=("MS_SSIM",), dtype="float64")[
        "MS_SSIM"
    ]
    assert float(found[0]) == pytest.approx(wanted, rel=1e-9)
    assert 0.3 < wanted < 0.99
