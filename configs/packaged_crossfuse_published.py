"""The packaged weights `crossfuse` by the published schedule: on an accelerator, minutes.

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
        name="packaged_crossfuse_published",
        method=CrossFuseConfig(
            stage1_epochs=40,
            stage2_epochs=120,
            halve_every_epochs=20,
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
        train=TrainConfig(steps_per_epoch=100, log_every=100, checkpoint_every=1000),
    )
