"""CrossFuse as published: 160 epochs, batch 8 of 64x64, Top-K offline; needs an accelerator."""

from jaxfuse.config import CrossFuseConfig, DataConfig, Experiment, SourceConfig, TrainConfig


def get() -> Experiment:
    return Experiment(
        name="crossfuse",
        method=CrossFuseConfig(alignment="offline", top_k=800),
        data=DataConfig(
            target=SourceConfig(kind="folders", root="data/roadscene"),
            external=SourceConfig(kind="folders", root="data/m3fd"),
        ),
        train=TrainConfig(checkpoint_every=1000),
    )
