"""SSVIF around the CrossFuse network on MSRS' training split; needs an accelerator."""

from jaxfuse.config import (
    DataConfig,
    Experiment,
    ModelConfig,
    SourceConfig,
    SSVIFConfig,
    TrainConfig,
)


def get() -> Experiment:
    return Experiment(
        name="ssvif",
        model=ModelConfig(name="crossfuse"),
        method=SSVIFConfig(
            stage1_epochs=20,
            stage2_epochs=20,
            segmenter="segformer_b0",
            learning_rate=1e-4,
            segmenter_learning_rate=3e-4,
        ),
        data=DataConfig(
            target=SourceConfig(kind="dataset", name="msrs", root="data/msrs", split="train"),
            patch_size=128,
        ),
        train=TrainConfig(batch_size=8, checkpoint_every=1000),
    )
