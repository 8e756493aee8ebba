"""A few minutes on generated street scenes of two sensors: no data needed."""

from jaxfuse.config import (
    CrossFuseConfig,
    DataConfig,
    Experiment,
    ExternalConfig,
    SourceConfig,
    TrainConfig,
)


def get() -> Experiment:
    return Experiment(
        name="demo",
        method=CrossFuseConfig(
            stage1_epochs=1,
            stage2_epochs=5,
            learning_rate=1e-3,
            halve_every_epochs=2,
            learning_rate_floor=1e-4,
            crop_size=32,
            flips=True,
        ),
        data=DataConfig(
            target=SourceConfig(kind="synthetic", scenes=32, sensor="clear", seed=1),
            external=ExternalConfig(
                kind="synthetic", scenes=64, sensor="dim", seed=2, alignment="offline", top_k=64
            ),
            patch_size=48,
            stride=80,
        ),
        train=TrainConfig(batch_size=4, steps_per_epoch=18, log_every=6, checkpoint_every=54),
    )
