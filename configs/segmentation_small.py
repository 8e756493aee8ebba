"""A segmentation network learns from labels of generated scenes that many cameras see."""

from jaxfuse.config import (
    DataConfig,
    Experiment,
    SegmentationConfig,
    SourceConfig,
    TrainConfig,
)


def get() -> Experiment:
    return Experiment(
        name="segmentation_small",
        method=SegmentationConfig(epochs=40),
        data=DataConfig(
            target=SourceConfig(
                kind="synthetic", scenes=768, height=120, width=160, sensor="varied", seed=21
            ),
            patch_size=96,
            stride=64,
        ),
        train=TrainConfig(batch_size=8, steps_per_epoch=100, log_every=20, checkpoint_every=1000),
    )
