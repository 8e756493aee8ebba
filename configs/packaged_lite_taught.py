"""The packaged `lite`, taught on by the packaged `crossfuse`, whose pictures it imitates besides.

Run it where data/ holds both sets and their splits (../shared of a checkout). The rest of the loss
is that of `packaged_lite_contrast`.
"""

from jaxfuse.config import (
    CrossFuseConfig,
    DataConfig,
    Experiment,
    ExternalConfig,
    ModelConfig,
    SourceConfig,
    TrainConfig,
)


def get() -> Experiment:
    msrs = {"kind": "folders", "root": "data/msrs", "split": "data/splits/msrs_train.txt"}
    return Experiment(
        name="packaged_lite_taught",
        model=ModelConfig(name="lite", start="lite"),
        method=CrossFuseConfig(
            stage1_epochs=0,
            stage2_epochs=5,
            learning_rate=5e-4,
            halve_every_epochs=1,
            learning_rate_floor=1e-5,
            clip_norm=1.0,
            flips=True,
            gradient_weight=0.0,
            difference_weight=10.0,
            ssim_weight=0.3,
            correlation_weight=0.06,
            teacher="crossfuse",
        ),
        data=DataConfig(
            target=SourceConfig(
                kind="folders", root="data/roadscene", split="data/splits/roadscene_train.txt"
            ),
            beside=SourceConfig(**msrs),
            external=ExternalConfig(**msrs, alignment="offline", top_k=200),
        ),
        train=TrainConfig(steps_per_epoch=100, checkpoint_every=250, log_every=50),
    )
