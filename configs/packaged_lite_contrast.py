"""The packaged weights `lite`, second part: contrast. Begins with a run of `packaged_lite`.

    jaxfuse train packaged_lite --run runs/packaged_lite
    jaxfuse train packaged_lite_contrast --run runs/packaged_lite_contrast

Run both where data/ holds both sets and their splits (../shared of a checkout), the second when the
first has finished. Trained by the brighter level alone, day scenes come out pale. Here what the
fused image adds to one image has to come from the other as well; trained so from the beginning, a
network ends with weaker edges.
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
        name="packaged_lite_contrast",
        model=ModelConfig(name="lite", start="runs/packaged_lite"),
        method=CrossFuseConfig(
            stage1_epochs=0,
            stage2_epochs=20,
            learning_rate=1e-3,
            halve_every_epochs=4,
            learning_rate_floor=1e-5,
            clip_norm=1.0,
            flips=True,
            gradient_weight=0.0,
            difference_weight=10.0,
            ssim_weight=0.3,
            correlation_weight=0.06,
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
