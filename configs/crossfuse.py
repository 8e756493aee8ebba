"""CrossFuse as published: 160 epochs, batch 8 of 64x64, Top-K offline; needs an accelerator."""

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
        name="crossfuse",
        method=CrossFuseConfig(),
        data=DataConfig(
            target=SourceConfig(kind="folders", root="data/roadscene"),
            external=ExternalConfig(
                kind="folders", root="data/m3fd", alignment="offline", top_k=800
            ),
        ),
        train=TrainConfig(checkpoint_every=1000),
    )
