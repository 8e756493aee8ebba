"""CrossFuse with Top-K inside every step: the external patches change as training goes on."""

from jaxfuse.config import CrossFuseConfig, DataConfig, Experiment, SourceConfig, TrainConfig


def get() -> Experiment:
    return Experiment(
        name="crossfuse_online",
        method=CrossFuseConfig(alignment="online", pool=64, keep=8),
        data=DataConfig(
            target=SourceConfig(kind="folders", root="data/roadscene"),
            external=SourceConfig(kind="folders", root="data/m3fd"),
        ),
        train=TrainConfig(checkpoint_every=1000),
    )
