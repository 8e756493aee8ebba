"""The packaged weights taught on by SSVIF: RoadScene and MSRS, no labels, on two CPU cores.

Run it where data/ holds both sets and their splits (../shared of a checkout). Training begins with
the packaged weights, in stage II; the fusion loss keeps levels and structure, and leaves out the
gradient term, which compares magnitudes only.
"""

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
        name="packaged_ssvif",
        model=ModelConfig(name="lite", start="lite"),
        method=SSVIFConfig(
            stage1_epochs=0,
            stage2_epochs=10,
            classes=32,
            intensity_weight=2.0,
            gradient_weight=0.0,
            ssim_weight=1.0,
            learning_rate=3e-4,
        ),
        data=DataConfig(
            target=SourceConfig(
                kind="folders", root="data/roadscene", split="data/splits/roadscene_train.txt"
            ),
            beside=SourceConfig(
                kind="folders", root="data/msrs", split="data/splits/msrs_train.txt"
            ),
        ),
        train=TrainConfig(steps_per_epoch=100, checkpoint_every=250, log_every=50),
    )
