"""SSVIF around a small network on generated scenes: minutes on two CPU cores."""

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
        name="ssvif_small",
        model=ModelConfig(name="lite"),
        # Structural similarity alone prescribes no level of any pixel: guidance can decide them.
        method=SSVIFConfig(
            stage1_epochs=5,
            stage2_epochs=20,
            classes=32,
            intensity_weight=0.0,
            gradient_weight=0.0,
            ssim_weight=1.0,
        ),
        data=DataConfig(
            target=SourceConfig(
                kind="synthetic", scenes=384, height=120, width=160, sensor="dim", seed=11
            ),
            patch_size=96,
            stride=64,
        ),
        train=TrainConfig(batch_size=8, steps_per_epoch=100, log_every=20, checkpoint_every=250),
    )
