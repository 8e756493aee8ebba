"""The packaged weights `lite`, first part: RoadScene and MSRS, day and night, two cores, minutes.

Run it where data/ holds both sets and their splits (../shared of a checkout). The paper's gradient
term, which compares magnitudes only, gives way to differences with their sign, and structure
counts besides. Differences weigh less than in `packaged_crossfuse`: a network that sees as far as
this one spends their excess on wide dark rims around what is hot. `packaged_lite_contrast` goes on.
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
        name="packaged_lite",
        model=ModelConfig(name="lite"),
        method=CrossFuseConfig(
            stage1_epochs=0,
            stage2_epochs=120,
            learning_rate=3e-3,
            halve_every_epochs=16,
            learning_rate_floor=1e-5,
            clip_norm=1.0,
            flips=True,
            gradient_weight=0.0,
            difference_weight=8.0,
            ssim_weight=0.3,
        ),
        data=DataConfig(
            target=SourceConfig(
                kind="folders", root="data/roadscene", split="data/splits/roadscene_train.txt"
            ),
            beside=SourceConfig(**msrs),
            external=ExternalConfig(**msrs, alignment="offline", top_k=200),
        ),
        train=TrainConfig(steps_per_epoch=100, checkpoint_every=500, log_every=100),
    )
