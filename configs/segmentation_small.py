"""A segmentation network that learns from labels of generated scenes, for SSVIF to start from."""

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
        method=SegmentationConfig(epochs=16),
        data=DataConfig(
            target=SourceConfig(
                kind="synthetic", scenes=384, height=120, width=160, sensor="clear", seed=21
            ),
            patch_size=96,
            stride=64,
        ),
        train=TrainConfig(batch_size=8, steps_per_epoch=100, log_every=20, checkpoint_every=400),
    )
