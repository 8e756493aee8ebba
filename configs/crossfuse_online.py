"""CrossFuse with Top-K inside every step: the external patches change as training goes on."""

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
        name="crossfuse_online",
        method=CrossFuseConfig(),
        data=DataConfig(
            target=SourceConfig(kind="folders", root="data/roadscene"),
            external=ExternalConfig(
                kind="folders", root="data/m3fd", alignment="online", pool=64, keep=8
            ),
        ),
        train=TrainConfig(checkpoint_every=1000),
    )
