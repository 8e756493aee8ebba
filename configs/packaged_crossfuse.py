"""The packaged weights `crossfuse`: RoadScene and MSRS, day and night; hours on two CPU cores.

Run it where data/ holds both sets and their splits (../shared of a checkout). The paper's gradient
term, which compares magnitudes only, gives way to differences with their sign, and structure
counts besides.
"""

from jaxfuse.config import (
    CrossFuseConfig,
    DataConfig,
    Experiment,
    ExternalConfig,
    SourceConfig,
    TrainConfig,
)


def get() -> Experiment:
    msrs = {"kind": "folders", "root": "data/msrs", "split": "data/splits/msrs_train.txt"}
    return Experiment(
        name="packaged_crossfuse",
        method=CrossFuseConfig(
            stage1_epochs=2,
            stage2_epochs=98,
            learning_rate=1e-3,
            halve_every_epochs=24,
            learning_rate_floor=1e-5,
            flips=True,
            gradient_weight=0.0,
            difference_weight=20.0,
            ssim_weight=0.3,
        ),
        data=DataConfig(
            target=SourceConfig(
                kind="folders", root="data/roadscene", split="data/splits/roadscene_train.txt"
            ),
            beside=SourceConfig(**msrs),
            external=ExternalConfig(**msrs, alignment="offline", top_k=200),
        ),
        train=TrainConfig(batch_size=4, steps_per_epoch=100, checkpoint_every=200),
    )
