"""Every metric in one table, with what each convention makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from jaxfuse.metrics import edges, features, information, intensity, perception, structure
from jaxfuse.metrics.triple import Triple
from jaxfuse.shapes import Array

Direction = Literal["higher", "lower", "unclear"]

CONVENTIONS = {
    "jaxfuse": "one documented choice a metric, in the units of the paper that defined it",
    "cddfuse": "CDDFuse, utils/Evaluator.py, commit fd8da1f",
    "crossfuse": "CrossFuse, utils/Evaluator.py, commit d9cf1b6",
    "zoo": "IVIF_ZOO, Metric/eval_torch.py, commit 61b0a44",
    "vifb": "VIFB, metrics/*.m, commit 22b2ea9, on gray images",
    "vifb_color": "VIFB, metrics/*.m, commit 22b2ea9, on colour images: the mean over R, G and B",
}
"""Conventions and where they come from."""


@dataclasses.dataclass(frozen=True)
class Definition:
    """What one convention computes under a metric's name."""

    compute: Callable[[Triple], Array]
    low: float | None
    high: float | None
    """Range of the result; None is unbounded."""
    unit: str = ""
    direction: Direction | None = None
    """Where it differs from the metric's own."""
    smallest: int = 2
    """Least height and width of an image for which it is defined."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One name of the literature."""

    title: str
    direction: Direction
    inputs: Literal["F", "FVI"]
    """Whether the fused image alone is looked at, or its sources too."""
    equation: str
    source: str
    definitions: Mapping[str, Definition]


def _both(cddfuse: Definition) -> dict[str, Definition]:
    return {"cddfuse": cddfuse, "crossfuse": cddfuse}


D = Definition

METRICS: dict[str, Metric] = {
    "EN": Metric(
        "entropy",
        "higher",
        "F",
        "-sum p log2 p over the 256 grey levels",
        "Roberts, van Aardt, Ahmed, J. Appl. Remote Sens. 2008",
        {
            "jaxfuse": D(information.entropy, 0, 8, "bits"),
            **_both(D(information.entropy, 0, 8, "bits")),
            "zoo": D(information.entropy_zoo, -1e-6, 8, "bits"),
            "vifb": D(information.entropy, 0, 8, "bits"),
        },
    ),
    "CE": Metric(
        "cross entropy",
        "lower",
        "FVI",
        "mean over sources of sum p_s log2(p_s / p_F), over levels that both have",
        "Bulanon, Burks, Alchanatis, Biosyst. Eng. 2009",
        {
            "jaxfuse": D(information.cross_entropy, None, None, "bits"),
            "zoo": D(information.cross_entropy_zoo, 0, None, "nats"),
            "vifb": D(information.cross_entropy, None, None, "bits"),
        },
    ),
    "MI": Metric(
        "mutual information",
        "higher",
        "FVI",
        "I(F; V) + I(F; I)",
        "Qu, Zhang, Yan, Electron. Lett. 2002",
        {
            "jaxfuse": D(information.mutual_information, 0, 16, "bits"),
            **_both(D(information.mutual_information_nats, 0, 11.1, "nats")),
            "zoo": D(information.mutual_information, 0, 16, "bits"),
            "vifb": D(information.mutual_information_nats, 0, 11.1, "nats"),
        },
    ),
    "NMI": Metric(
        "normalised mutual information",
        "higher",
        "FVI",
        "2 (I(F; V) / (H(F) + H(V)) + I(F; I) / (H(F) + H(I)))",
        "Hossny, Nahavandi, Creighton, Electron. Lett. 2008",
        {
            "jaxfuse": D(information.normalised_mutual_information, 0, 2),
            "zoo": D(information.normalised_mutual_information_zoo, 0, 2),
        },
    ),
    "QNCIE": Metric(
        "nonlinear correlation information entropy",
        "higher",
        "FVI",
        "1 + sum l / 3 log256(l / 3) over the eigenvalues l of the 3 x 3 matrix of coefficients",
        "Wang, Shen, Jin, in: Image Fusion, 2008",
        {
            "jaxfuse": D(information.correlation_entropy, 0.8, 1),
            "zoo": D(information.correlation_entropy_zoo, 0.8, 1),
        },
    ),
    "TE": Metric(
        "Tsallis entropy",
        "higher",
        "FVI",
        "I_q(F; V) + I_q(F; I), Tsallis' information of order q = 1.85",
        "Cvejic, Canagarajah, Bull, Electron. Lett. 2006",
        {
            "jaxfuse": D(information.tsallis_information, 0, None),
            "zoo": D(information.entropy_difference_zoo, -8, 16, "bits", direction="unclear"),
        },
    ),
    "EI": Metric(
        "edge intensity",
        "higher",
        "F",
        "mean of sqrt(gx^2 + gy^2), Sobel",
        "Rajalingam, Priya, Comput. Inf. Sci. 2018",
        {
            "jaxfuse": D(intensity.edge_intensity, 0, None, "levels"),
            "zoo": D(intensity.edge_intensity_zoo, 0, None, "levels"),
            "vifb": D(intensity.edge_intensity, 0, None, "levels"),
        },
    ),
    "SD": Metric(
        "standard deviation",
        "higher",
        "F",
        "sqrt(mean (F - mean F)^2)",
        "Rao, Meas. Sci. Technol. 1997",
        {
            name: D(intensity.standard_deviation, 0, 127.5, "levels")
            for name in ("jaxfuse", "cddfuse", "crossfuse", "zoo", "vifb")
        },
    ),
    "SF": Metric(
        "spatial frequency",
        "higher",
        "F",
        "sqrt((sum of squared differences along rows + along columns) / (h w))",
        "Eskicioglu, Fisher, IEEE Trans. Commun. 1995",
        {
            "jaxfuse": D(intensity.spatial_frequency, 0, 361, "levels"),
            **_both(D(intensity.spatial_frequency_means, 0, 361, "levels")),
            "zoo": D(intensity.spatial_frequency_means, 0, 361, "levels"),
            "vifb": D(intensity.spatial_frequency, 0, 361, "levels"),
        },
    ),
    "AG": Metric(
        "average gradient",
        "higher",
        "F",
        "mean of sqrt((dx^2 + dy^2) / 2), differences to the next pixel",
        "Cui, Feng, Xu, Li, Chen, Opt. Commun. 2015",
        {
            "jaxfuse": D(intensity.average_gradient, 0, 255, "levels"),
            **_both(D(intensity.average_gradient_central, 0, 255, "levels")),
            "zoo": D(intensity.average_gradient_central, 0, 255, "levels"),
            "vifb": D(intensity.average_gradient_vifb, 0, None, "levels"),
        },
    ),
    "CC": Metric(
        "correlation coefficient",
        "higher",
        "FVI",
        "(r(V, F) + r(I, F)) / 2",
        "Deshmukh, Bhosale, Int. J. Image Process. 2010",
        {
            name: D(intensity.correlation_coefficient, -1, 1)
            for name in ("jaxfuse", "cddfuse", "crossfuse", "zoo")
        },
    ),
    "SCD": Metric(
        "sum of the correlations of differences",
        "higher",
        "FVI",
        "r(V, F - I) + r(I, F - V)",
        "Aslantas, Bendes, AEU 2015",
        {
            name: D(intensity.sum_of_correlations, -2, 2)
            for name in ("jaxfuse", "cddfuse", "crossfuse", "zoo")
        },
    ),
    "MSE": Metric(
        "mean squared error",
        "lower",
        "FVI",
        "mean over sources of mean (S - F)^2",
        "Jagalingam, Hegde, Aquat. Procedia 2015",
        {
            "jaxfuse": D(intensity.squared_error, 0, 65025, "levels^2"),
            "cddfuse": D(intensity.squared_error, 0, 65025, "levels^2"),
            "crossfuse": D(intensity.squared_error_of_one, 0, 1),
            "zoo": D(intensity.squared_error_of_one, 0, 1),
        },
    ),
    "RMSE": Metric(
        "root mean squared error",
        "lower",
        "FVI",
        "mean over sources of sqrt(mean (S - F)^2)",
        "Jagalingam, Hegde, Aquat. Procedia 2015",
        {
            "jaxfuse": D(intensity.root_squared_error, 0, 255, "levels"),
            "vifb": D(intensity.root_squared_error_vifb, 0, None),
        },
    ),
    "PSNR": Metric(
        "peak signal to noise ratio",
        "higher",
        "FVI",
        "10 log10(255^2 / MSE)",
        "Jagalingam, Hegde, Aquat. Procedia 2015",
        {
            "jaxfuse": D(intensity.peak_signal_to_noise, 0, None, "dB"),
            "cddfuse": D(intensity.peak_signal_to_noise_cddfuse, None, None, "dB"),
            "crossfuse": D(intensity.peak_signal_to_noise_crossfuse, None, None, "dB"),
            "zoo": D(intensity.peak_signal_to_noise_zoo, 48.1, None, "dB"),
            "vifb": D(intensity.peak_signal_to_noise_vifb, None, None, "dB"),
        },
    ),
    "SSIM": Metric(
        "structural similarity",
        "higher",
        "FVI",
        "mean over sources of mean (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)"
        "(sx^2 + sy^2 + C2))",
        "Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004",
        {
            "jaxfuse": D(structure.ssim, -1, 1, smallest=11),
            "cddfuse": D(structure.ssim_cddfuse, -2, 2, smallest=7),
            "crossfuse": D(structure.ssim_crossfuse, -2, 2, smallest=7),
            "zoo": D(structure.ssim_zoo, -2, 2, smallest=11),
            "vifb": D(structure.ssim_vifb, -2, 2, smallest=11),
        },
    ),
    "MS_SSIM": Metric(
        "multi-scale structural similarity",
        "higher",
        "FVI",
        "mean over sources of the product over 5 scales of cs^e, at the last one SSIM^e",
        "Wang, Simoncelli, Bovik, Asilomar 2003",
        {
            "jaxfuse": D(structure.ms_ssim, 0, 1, smallest=176),
            "zoo": D(structure.ms_ssim_zoo, 0, 2, smallest=161),
        },
    ),
    "VIF": Metric(
        "visual information fidelity, pixel domain",
        "higher",
        "FVI",
        "mean over sources of sum ln(1 + g^2 s^2 / (v + 2)) / sum ln(1 + s^2 / 2), 4 scales",
        "Sheikh, Bovik, IEEE TIP 2006; Han, Cai, Cao, Xu, Inf. Fusion 2013",
        {
            "jaxfuse": D(structure.vif, 0, None, smallest=41),
            **_both(D(structure.vif_cddfuse, 0, None, smallest=41)),
            "zoo": D(structure.vif_zoo, 0, None),
        },
    ),
    "Qabf": Metric(
        "edge preservation",
        "higher",
        "FVI",
        "sum (Q_VF g_V + Q_IF g_I) / sum (g_V + g_I), Q = sigmoid(strength) sigmoid(angle)",
        "Xydeas, Petrovic, Electron. Lett. 2000",
        {
            "jaxfuse": D(edges.edge_preservation, 0, 1),
            **_both(D(edges.edge_preservation_cddfuse, 0, 1)),
            "zoo": D(edges.edge_preservation_cddfuse, 0, 1),
            "vifb": D(edges.edge_preservation_vifb, 0, 1),
        },
    ),
    "Nabf": Metric(
        "fusion artefacts",
        "lower",
        "FVI",
        "sum of (1 - Q_VF) w_V + (1 - Q_IF) w_I where g_F > g_V, g_I, / sum (w_V + w_I)",
        "Petrovic, Xydeas, ICCV 2005; Shreyamsha Kumar, SIViP 2013",
        {name: D(edges.added_edges, 0, 1) for name in ("jaxfuse", "zoo")},
    ),
    "Qcb": Metric(
        "contrast preservation",
        "higher",
        "FVI",
        "mean of the sources' shares of kept masked contrast",
        "Chen, Blum, Image Vis. Comput. 2009",
        {
            "jaxfuse": D(perception.chen_blum, 0, 1),
            "zoo": D(perception.chen_blum_zoo, 0, 1),
            "vifb": D(perception.chen_blum_vifb, 0, 1),
        },
    ),
    "Qcv": Metric(
        "perceived error",
        "lower",
        "FVI",
        "sum l D / sum l over regions of 16 x 16, l = sum g^5, D = mean squared filtered error",
        "Chen, Varshney, Inf. Fusion 2007",
        {
            "jaxfuse": D(perception.chen_varshney, 0, None, "levels^2"),
            "vifb": D(perception.chen_varshney_vifb, 0, None, "levels^2"),
        },
    ),
    "Qy": Metric(
        "similarity to the better source",
        "higher",
        "FVI",
        "mean of l S(V, F) + (1 - l) S(I, F) where S(V, I) >= 0.75, else max(S(V, F), S(I, F))",
        "Yang, Zhang, Wang, Liu, ICIF 2008",
        {
            "jaxfuse": D(structure.yang, -1, 1, smallest=7),
            "zoo": D(structure.yang_zoo, None, None),
        },
    ),
    "FMI_pixel": Metric(
        "feature mutual information of pixels",
        "higher",
        "FVI",
        "mean over 3 x 3 windows and sources of 2 I / (H(S) + H(F)), joint by Nelsen's method",
        "Haghighat, Aghagolzadeh, Seyedarabi, Comput. Electr. Eng. 2011",
        {"jaxfuse": D(features.feature_information_pixel, 0, 1, smallest=3)},
    ),
    "FMI_gradient": Metric(
        "feature mutual information of gradients",
        "higher",
        "FVI",
        "the same of horizontal differences",
        "Haghighat, Razian, AICT 2014",
        {"jaxfuse": D(features.feature_information_gradient, 0, 1, smallest=3)},
    ),
}
"""Metrics by name, in the order of tables."""
