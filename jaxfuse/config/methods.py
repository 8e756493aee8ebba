"""The settings of each way of training."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxfuse.config.data import DataConfig
from jaxfuse.config.errors import require


@dataclasses.dataclass(frozen=True)
class CrossFuseConfig:
    """CrossFuse (IEEE T-CSVT 2025, arXiv 2502.14493); the defaults are the published constants."""

    name: Literal["crossfuse"] = "crossfuse"
    stage1_epochs: float = 40.0
    """Reconstruction of each modality by itself."""
    stage2_epochs: float = 120.0
    """Fusion."""
    learning_rate: float = 1e-4
    halve_every_epochs: float = 20.0
    learning_rate_floor: float = 1e-6
    clip_norm: float = 0.01
    """Largest gradient norm of each module."""
    schedule: Literal["ours", "published"] = "ours"
    """Weight of the self-supervision over stage II: falling to 0, or falling and rising again as
    published.
    """
    self_supervision: float = 0.1
    """theta at the start of stage II. 0 switches the internal view off."""
    crop_size: int = 32
    """Side of the weak crop, pixels."""
    flips: bool = False
    """Mirror each pair left-right and up-down at random, both images alike."""
    gradient_weight: float = 10.0
    """Of the stronger gradient magnitude, stage II."""
    difference_weight: float = 0.0
    """Of the stronger difference between neighbouring pixels, with its sign, stage II. Not in the
    paper, which has 0: magnitudes alone reward a checkerboard where one image is flat and bright
    and the other has edges."""
    ssim_weight: float = 0.0
    """Of (1 - SSIM(Y, F)) + (1 - SSIM(IR, F)), stage II; not in the paper, which has 0."""
    correlation_weight: float = 0.0
    """Of (1 - corr(F - IR, Y)) + (1 - corr(F - Y, IR)), stage II: what the fused image adds to one
    image should come from the other; `unexplained` in the log. Not in the paper, which has 0."""
    teacher: str = ""
    """Weights file, run folder or name of packaged weights of a fusion network whose fused images
    stage II imitates as well; any network may learn from any other."""
    imitation: float = 1.0
    """Weight of that imitation; without a teacher there is none to weigh."""

    def __post_init__(self) -> None:
        weights = ("gradient_weight", "difference_weight", "ssim_weight", "correlation_weight")
        for field in (*weights, "imitation"):
            value = getattr(self, field)
            require(0 <= value < math.inf, f"method.{field}", value, "use 0 or a positive number")
        require(
            self.stage1_epochs >= 0, "method.stage1_epochs", self.stage1_epochs, "use 0 or more"
        )
        require(
            self.stage2_epochs >= 0, "method.stage2_epochs", self.stage2_epochs, "use 0 or more"
        )
        require(
            self.stage1_epochs + self.stage2_epochs > 0,
            "method.stage2_epochs",
            self.stage2_epochs,
            "nothing to train",
        )
        require(
            not self.teacher or self.stage2_epochs > 0,
            "method.teacher",
            self.teacher,
            f"stage II imitates it: set method.stage2_epochs ({self.stage2_epochs}) above 0, or "
            "leave method.teacher out",
        )
        require(
            bool(self.teacher) or self.imitation == 1.0,
            "method.imitation",
            self.imitation,
            "is the weight of a teacher: give method.teacher too, or leave it out",
        )
        require(
            0 < self.learning_rate < math.inf,
            "method.learning_rate",
            self.learning_rate,
            "use a positive number",
        )
        require(
            0 <= self.learning_rate_floor <= self.learning_rate,
            "method.learning_rate_floor",
            self.learning_rate_floor,
            f"must lie in 0..method.learning_rate ({self.learning_rate})",
        )
        require(
            0 <= self.self_supervision < math.inf,
            "method.self_supervision",
            self.self_supervision,
            "use 0 (off) or a positive number",
        )
        require(
            self.halve_every_epochs > 0,
            "method.halve_every_epochs",
            self.halve_every_epochs,
            "must be positive",
        )
        require(self.clip_norm > 0, "method.clip_norm", self.clip_norm, "use a positive number")
        require(
            self.crop_size >= 12,
            "method.crop_size",
            self.crop_size,
            "the blur's border needs at least 12",
        )

    labelled_classes = 0
    """How many classes the label maps of training have; 0 needs no label maps."""

    def check_data(self, data: DataConfig) -> None:
        """Raises ConfigError where this method cannot learn from such data."""
        require(
            self.crop_size <= data.patch_size,
            "method.crop_size",
            self.crop_size,
            f"must not exceed data.patch_size ({data.patch_size})",
        )


@dataclasses.dataclass(frozen=True)
class SSVIFConfig:
    """SSVIF (IEEE TIP 2026, arXiv 2509.22450): segmentation as a teacher of fusion, without labels.

    The paper states the two stages and the agreement of two segmentations; the form of the loss,
    the anchors, the weight rules and all numbers are ours (docs/guides/ssvif.md).
    """

    name: Literal["ssvif"] = "ssvif"
    guidance: Literal["consistency", "labels", "none"] = "consistency"
    """What stage II adds to the fusion loss. consistency: SSVIF. labels: the segmentation model's
    cross-entropy (the upper bound). none: nothing (the lower bound)."""
    stage1_epochs: float = 20.0
    """Fusion loss only."""
    stage2_epochs: float = 20.0
    """Fusion loss and guidance."""
    segmenter: str = "segformer_tiny"
    """A name in `jaxfuse.models.SEGMENTERS`: the segmentation of the fused image."""
    classes: int = 16
    """Pseudo-classes; with labels or pretrained weights, the classes these have."""
    segmenter_weights: str = ""
    """Weights file of the segmentation model."""
    segmenter_start: Literal["weights", "fresh"] = "weights"
    """What the segmentation model that learns begins with. fresh, with a pretrained anchor: only
    the teacher has the weights, and the model learns from it what the fused image shows."""
    segmenter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of segmentation model and head; `model.compute_dtype` is the fusion network's."""
    loss: Literal["cross_entropy", "kl", "cosine"] = "cross_entropy"
    """How far two predictions are apart."""
    region: int = 4
    """Side of the squares, in cells of the segmentations' grid (4 pixels each), that A and B agree
    on: logits are averaged over them. 1 compares every cell, and edges and texture are easier to
    agree on than things."""
    sharpness: float = 2.0
    """Targets are softmax(sharpness * logits); 1 leaves them as they are."""
    confidence: bool = True
    """Weigh each pixel by how sure its target is."""
    anchor: Literal["balanced", "pretrained", "none"] = "balanced"
    """What keeps the two predictions from agreeing on one class everywhere."""
    sinkhorn_steps: int = 3
    """balanced: rounds of Sinkhorn and Knopp."""
    sinkhorn_epsilon: float = 0.25
    """balanced: entropy of the assignment, in units of logits; smaller is sharper."""
    teacher_decay: float = 1.0
    """pretrained: targets come from a copy of the segmentation model that moves by 1 - decay each
    step; 1 keeps it frozen (and, unless `segmenter_start` is fresh, the model with it)."""
    weighting: Literal["dwa", "gradnorm", "ramp", "fixed"] = "ramp"
    """How the weights of fusion and guidance change over stage II."""
    guidance_weight: float = 1.0
    """Weight of the guidance, which `weighting` scales."""
    weighting_temperature: float = 2.0
    """dwa: larger is closer to equal weights."""
    weighting_window: int = 20
    """dwa: steps each of the two loss averages covers."""
    ramp: float = 0.25
    """ramp: share of stage II over which guidance grows from exp(-5) of its weight to all of it."""
    intensity_weight: float = 1.0
    """Of mean |max(Y, IR) - F|."""
    gradient_weight: float = 10.0
    """Of mean |max(|S Y|, |S IR|) - |S F||."""
    ssim_weight: float = 0.5
    """Of (1 - SSIM(Y, F)) + (1 - SSIM(IR, F))."""
    learning_rate: float = 1e-3
    """Of the fusion network in stage I; falls to 0 along a cosine over both stages."""
    segmenter_learning_rate: float = 2e-3
    """Of the segmentation model and the head in stage II; likewise."""
    clip_norm: float = 1.0
    """Largest gradient norm of each of fusion network, segmentation model and head."""
    flips: bool = True
    """Mirror each pair left-right at random, both images and the labels alike."""

    def __post_init__(self) -> None:
        positive = ("sharpness", "sinkhorn_epsilon", "weighting_temperature", "learning_rate")
        for field in (*positive, "segmenter_learning_rate", "clip_norm"):
            value = getattr(self, field)
            require(0 < value < math.inf, f"method.{field}", value, "use a positive number")
        weights = ("guidance_weight", "intensity_weight", "gradient_weight", "ssim_weight")
        for field in ("stage1_epochs", "stage2_epochs", *weights):
            value = getattr(self, field)
            require(0 <= value < math.inf, f"method.{field}", value, "use 0 or a positive number")
        require(
            self.stage1_epochs + self.stage2_epochs > 0,
            "method.stage2_epochs",
            self.stage2_epochs,
            "nothing to train",
        )
        for field in ("sinkhorn_steps", "weighting_window", "region"):
            value = getattr(self, field)
            require(value >= 1, f"method.{field}", value, "use at least 1")
        require(2 <= self.classes <= 255, "method.classes", self.classes, "use 2 to 255")
        for field in ("teacher_decay", "ramp"):
            value = getattr(self, field)
            require(0 <= value <= 1, f"method.{field}", value, "use a number from 0 to 1")
        require(
            self.anchor != "pretrained" or bool(self.segmenter_weights),
            "method.segmenter_weights",
            self.segmenter_weights,
            "method.anchor = 'pretrained' needs a weights file of a segmentation model",
        )
        fresh = self.segmenter_start == "fresh"
        require(
            not fresh or (self.anchor == "pretrained" and self.guidance == "consistency"),
            "method.segmenter_start",
            self.segmenter_start,
            "a fresh segmentation model beside weights needs method.anchor = 'pretrained' and "
            "method.guidance = 'consistency'",
        )
        require(
            self.guidance != "none" or not self.segmenter_weights,
            "method.segmenter_weights",
            self.segmenter_weights,
            "not used with method.guidance = 'none': leave it empty",
        )
        require(
            not fresh or self.teacher_decay == 1.0,
            "method.teacher_decay",
            self.teacher_decay,
            "use 1: a teacher that follows a fresh segmentation model would forget",
        )

    @property
    def labelled_classes(self) -> int:
        """How many classes the label maps of training have; 0 needs no label maps."""
        return self.classes if self.guidance == "labels" else 0

    def check_data(self, data: DataConfig) -> None:
        """Raises ConfigError where this method cannot learn from such data."""


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """A segmentation network learns from labels on the visible images as they are: what judges
    fused images downstream, where these take the visible ones' place."""

    name: Literal["segmentation"] = "segmentation"
    segmenter: str = "segformer_tiny"
    """A name in `jaxfuse.models.SEGMENTERS`."""
    classes: int = 9
    """Labels are 0 to classes - 1, and 255 for what counts in nothing."""
    segmenter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of its feature maps."""
    start: str = ""
    """Weights file to start from; empty starts from random parameters."""
    epochs: float = 20.0
    learning_rate: float = 2e-3
    """After a short linear rise; falls to 0 along a cosine."""
    warm_up: float = 0.05
    """Share of the training over which the rate rises."""
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    """Largest gradient norm."""
    flips: bool = True
    """Mirror each image left-right at random, the labels alike."""

    def __post_init__(self) -> None:
        for field in ("epochs", "learning_rate", "clip_norm"):
            value = getattr(self, field)
            require(0 < value < math.inf, f"method.{field}", value, "use a positive number")
        require(
            0 <= self.weight_decay < math.inf,
            "method.weight_decay",
            self.weight_decay,
            "use 0 or a positive number",
        )
        require(0 <= self.warm_up < 1, "method.warm_up", self.warm_up, "use a share below 1")
        require(2 <= self.classes <= 255, "method.classes", self.classes, "use 2 to 255")

    @property
    def labelled_classes(self) -> int:
        """How many classes the label maps of training have."""
        return self.classes

    def check_data(self, data: DataConfig) -> None:
        """Raises ConfigError where this method cannot learn from such data."""


METHOD_CONFIGS: dict[str, type] = {
    "crossfuse": CrossFuseConfig,
    "ssvif": SSVIFConfig,
    "segmentation": SegmentationConfig,
}
"""What configures each of `jaxfuse.methods.METHODS`."""
