"""CrossFuse on two CPU cores within the hour: fewer, larger steps on the same losses."""

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
        name="crossfuse_small",
        method=CrossFuseConfig(
            stage1_epochs=1,
            stage2_epochs=8,
            learning_rate=1e-3,
            halve_every_epochs=2,
            learning_rate_floor=1e-5,
            flips=True,
        ),
        data=DataConfig(
            target=SourceConfig(kind="folders", root="data/roadscene"),
            external=ExternalConfig(
                kind="folders", root="data/msrs", alignment="offline", top_k=200
            ),
        ),
        train=TrainConfig(batch_size=4, steps_per_epoch=100, checkpoint_every=100),
    )
