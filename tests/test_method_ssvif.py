"""SSVIF's training: stages, weights, anchors, bounds; alike under jit and pmap; every network."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import tiny_network
from jaxfuse import distributed, methods, models
from jaxfuse.config import ConfigError, SSVIFConfig
from jaxfuse.methods import Facts, Method, ssvif
from jaxfuse.models import Compute, Model
from jaxfuse.shapes import Params
from jaxfuse.train import steps
from jaxfuse.train.state import TrainState, init_state
from tiny_segmenter import quick_segmenter  # noqa: F401 (a fixture)

MODEL = tiny_network.create(Compute())
SIZE, ROWS = 32, 8
CONFIG = SSVIFConfig(stage1_epochs=1, stage2_epochs=2, classes=4)

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make_batch(seed: int = 0, labels: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (ROWS, SIZE, SIZE, 4)).astype(np.float32) / 255
    batch = {
        "visible": levels[..., :3],
        "infrared": levels[..., 3:],
        "index": np.arange(ROWS * seed, ROWS * (seed + 1), dtype=np.int32),
    }
    if labels:
        batch["labels"] = rng.integers(0, 4, (ROWS, SIZE, SIZE)).astype(np.int32)
    return batch


def given_segmenter() -> Params:
    return models.create_segmenter("segformer_tiny", 4).init(jax.random.key(9))


def build(model: Model = MODEL, **changes: Any) -> Method:
    config = dataclasses.replace(CONFIG, **changes)
    start = given_segmenter() if config.segmenter_weights else None
    return methods.build(config, model, Facts(2), start)


@functools.cache
def compiled(method: Method, number: int):
    stage = method.stages[number]
    return quick(functools.partial(steps.update, stage=stage)), stage


def trained(method: Method, count: int, labels: bool = False) -> tuple[TrainState, list[dict]]:
    state, history = init_state(method, jax.random.key(0)), []
    for step in range(count):
        number = 0 if step < method.stages[0].stop else 1
        take, _ = compiled(method, number)
        state, metrics = take(state, make_batch(step, labels))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def moved(before: Any, after: Any) -> bool:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_stage_one_moves_the_fusion_network_only_and_stage_two_all() -> None:
    method = build()
    assert [(s.name, s.start, s.stop) for s in method.stages] == [
        ("fusion", 0, 2),
        ("guided", 2, 6),
    ]
    start = init_state(method, jax.random.key(0)).params
    one, first = trained(method, 2)
    assert moved(start["fusion"], one.params["fusion"])
    assert not moved(start["head"], one.params["head"])
    assert not moved(start["segmenter"], one.params["segmenter"])
    two, both = trained(method, 3)
    for name in ssvif.MODULES:
        assert moved(one.params[name], two.params[name]), name
    assert "guidance_loss" not in first[-1]
    assert {"classes_in_use", "confidence", "agreement", "weight_guidance"} <= both[-1].keys()
    assert method.deploy(two.params) is two.params["fusion"]
    last = both[-1]
    wanted = last["weight_fusion"] * last["fusion_loss"]
    wanted += last["weight_guidance"] * last["guidance_loss"]
    assert last["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("guidance", ["consistency", "labels"])
def test_guidance_alone_pulls_at_the_fused_image_and_the_features(guidance: str) -> None:
    config = dataclasses.replace(CONFIG, guidance=guidance)
    networks = ssvif.make_networks(config, MODEL)
    params = build(guidance=guidance).init(jax.random.key(3))
    batch = make_batch(labels=True)
    examples = {name: jnp.asarray(x) for name, x in batch.items()}
    examples |= {"color": examples["visible"], "visible": examples["visible"][..., :1]}
    fused = networks.fusion.apply(params["fusion"], examples["visible"], examples["infrared"])

    def loss(image: jax.Array, features: jax.Array) -> jax.Array:
        return ssvif.guidance_loss(networks, config, params, {}, examples, image, features)[0]

    of_image, of_features = jax.device_get(
        quick(jax.grad(loss, argnums=(0, 1)))(fused.image, fused.features)
    )
    assert np.abs(of_image).max() > 0
    # Labels are compared with what the image shows; nothing is asked of the features.
    assert (np.abs(of_features).max() > 0) == (guidance == "consistency")


def slow_cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    return float(np.mean(-np.sum(target * special.log_softmax(logits, axis=-1), axis=-1)))


def test_a_follows_the_teacher_and_b_both() -> None:
    config = dataclasses.replace(
        CONFIG,
        anchor="pretrained",
        segmenter_weights="teacher",
        confidence=False,
        region=1,
        sharpness=3.0,
    )
    rng = np.random.default_rng(1)
    a, b, teacher = (rng.normal(size=(2, 5, 4, 3)).astype(np.float32) for _ in range(3))

    def target(logits: np.ndarray) -> np.ndarray:
        return special.softmax(3.0 * logits.astype(np.float64), axis=-1)

    to_a = slow_cross_entropy(a, target(teacher))
    to_b = (slow_cross_entropy(b, target(a)) + slow_cross_entropy(b, target(teacher))) / 2
    run = jax.value_and_grad(functools.partial(ssvif.cross_loss, config), argnums=(0, 1, 2))
    found, gradients = jax.device_get(run(a, b, teacher))
    assert found == pytest.approx((to_a + to_b) / 2, rel=1e-5)
    pulls = [np.abs(g).max() for g in gradients]
    assert pulls[0] > 0 and pulls[1] > 0 and pulls[2] == 0
    # Of the cross-entropies, the gradient is prediction less target.
    wanted = (special.softmax(a, axis=-1) - target(teacher)) / (2 * 2 * 5 * 4)
    np.testing.assert_allclose(gradients[0], wanted, atol=1e-6)


def test_the_fusion_loss_is_its_weighted_terms() -> None:
    config = dataclasses.replace(CONFIG, intensity_weight=2.0, gradient_weight=3.0, ssim_weight=0.7)
    rng = np.random.default_rng(0)
    v, i, f = (jnp.asarray(rng.random((2, 24, 24, 1)), jnp.float32) for _ in range(3))
    loss, terms = ssvif.fusion_loss(config, v, i, f)
    wanted = 2.0 * terms["intensity"] + 3.0 * terms["gradient"] + 0.7 * terms["ssim"]
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    assert float(terms["intensity"]) == pytest.approx(
        float(jnp.abs(jnp.maximum(v, i) - f).mean()), rel=1e-5
    )
    same, terms = ssvif.fusion_loss(config, f, f, f)
    assert abs(float(same)) < 1e-5 and abs(float(terms["ssim"])) < 1e-5


def test_the_lower_bound_is_the_fusion_loss_alone() -> None:
    method = build(guidance="none")
    start = init_state(method, jax.random.key(0)).params
    state, history = trained(method, 3)
    assert not moved(start["segmenter"], state.params["segmenter"])
    assert history[-1]["loss"] == pytest.approx(history[-1]["fusion_loss"])
    assert method.steps == build().steps  # as long as what it is compared with


def test_the_upper_bound_learns_from_labels() -> None:
    config = dataclasses.replace(CONFIG, guidance="labels")
    assert config.labelled_classes == config.classes and not CONFIG.labelled_classes
    method = build(guidance="labels")
    start = init_state(method, jax.random.key(0)).params
    state, history = trained(method, 3, labels=True)
    assert moved(start["segmenter"], state.params["segmenter"])
    assert 0 <= history[-1]["accuracy"] <= 1 and "agreement" not in history[-1]


def test_ramp() -> None:
    values = [float(ssvif.ramp_up(jnp.float32(t), 0.5)) for t in (0.0, 0.25, 0.5, 1.0)]
    assert values == pytest.approx([math.exp(-5), math.exp(-1.25), 1.0, 1.0], rel=1e-5)
    assert float(ssvif.ramp_up(jnp.float32(0.0), 0.0)) == 1.0


def test_fixed_weights() -> None:
    config = dataclasses.replace(CONFIG, weighting="fixed", guidance_weight=0.3)
    found = ssvif.loss_weights(config, {}, jnp.float32(0.1), None)
    assert [float(x) for x in found] == pytest.approx([1.0, 0.3])


def test_dwa_follows_the_ratio_of_the_last_two_averages() -> None:
    config = dataclasses.replace(
        CONFIG, weighting="dwa", weighting_window=2, weighting_temperature=2.0, guidance_weight=0.5
    )
    memory, remember = ssvif.averages(config)
    losses = [(4.0, 1.0), (2.0, 3.0), (1.0, 2.0), (2.0, 2.0), (9.0, 9.0)]
    for fusion, guidance in losses:
        seen = {"fusion_loss": jnp.float32(fusion), "guidance_loss": jnp.float32(guidance)}
        memory = remember(memory, {}, seen)
    # Windows: means (3, 2), then (1.5, 2); the fifth step is in neither.
    np.testing.assert_allclose(memory["before"], [3.0, 2.0])
    np.testing.assert_allclose(memory["last"], [1.5, 2.0])
    e = np.exp(np.array([0.5, 1.0]) / 2.0)
    w = 2 * e / e.sum()
    found = ssvif.loss_weights(config, {"dwa": memory}, jnp.float32(0.5), None)
    assert [float(x) for x in found] == pytest.approx([w[0], 0.5 * w[1]], rel=1e-5)


@pytest.mark.slow
def test_dwa_begins_with_equal_weights() -> None:
    method = build(weighting="dwa", weighting_window=1)
    state, history = trained(method, 4)
    assert history[2]["weight_fusion"] == pytest.approx(1.0)
    # After one window there is an average, but no ratio yet.
    assert history[3]["weight_fusion"] == pytest.approx(1.0)
    assert state.memory["dwa"]["last"][0] == pytest.approx(history[3]["fusion_loss"], rel=1e-5)


@pytest.mark.slow
def test_gradnorm_makes_both_pulls_equal() -> None:
    config = dataclasses.replace(CONFIG, weighting="gradnorm", guidance_weight=1.0)
    networks = ssvif.make_networks(config, MODEL)
    method = build(weighting="gradnorm")
    params = method.init(jax.random.key(1))
    stage = method.stages[1]
    examples, _ = stage.prepare_validation(
        jax.tree.map(jnp.asarray, make_batch()), jax.random.key(0), None
    )
    fused = MODEL.apply(params["fusion"], examples["visible"], examples["infrared"])

    def pull(w_f: float, w_c: float) -> float:
        fixed = dataclasses.replace(config, weighting="fixed")
        objective = ssvif.guided_objective(
            networks._replace(
                fusion=dataclasses.replace(
                    MODEL, apply=lambda p, v, i: fused._replace(image=p[0], features=p[1])
                )
            ),
            fixed,
        )

        def loss(seen):
            _, metrics = objective(
                {**params, "fusion": seen}, {}, examples, jax.random.key(0), jnp.float32(0), None
            )
            return w_f * metrics["fusion_loss"] + w_c * metrics["guidance_loss"]

        gradient = quick(jax.grad(loss))((fused.image, fused.features))
        return math.sqrt(sum(float(jnp.sum(g * g)) for g in gradient))

    _, metrics = quick(stage.objective)(
        params, {}, examples, jax.random.key(0), jnp.float32(0.0), None
    )
    assert metrics["weight_fusion"] == 1.0
    weight = float(metrics["weight_guidance"])
    assert pull(0.0, weight) == pytest.approx(pull(1.0, 0.0), rel=1e-3)


@pytest.mark.slow
def test_a_frozen_pretrained_segmentation_model_stays() -> None:
    method = build(anchor="pretrained", segmenter_weights="given")
    start = init_state(method, jax.random.key(0))
    state, _ = trained(method, 3)
    assert start.memory == {}
    assert not moved(start.params["segmenter"], state.params["segmenter"])
    assert moved(start.params["head"], state.params["head"])


@pytest.mark.slow
def test_a_slow_teacher_follows_the_segmentation_model() -> None:
    method = build(anchor="pretrained", segmenter_weights="given", teacher_decay=0.9)
    start, (state, _) = init_state(method, jax.random.key(0)), trained(method, 3)
    name = "classifier"
    before, now, teacher = (
        np.asarray(x["head"][name]["weight"])
        for x in (start.params["segmenter"], state.params["segmenter"], state.memory["teacher"])
    )
    assert not np.array_equal(before, now)
    np.testing.assert_allclose(teacher, 0.9 * before + 0.1 * now, atol=1e-7)


@pytest.mark.slow
def test_a_fresh_segmentation_model_learns_from_a_teacher_that_stands_still() -> None:
    given = given_segmenter()
    config = dataclasses.replace(
        CONFIG, anchor="pretrained", segmenter_weights="given", segmenter_start="fresh"
    )
    method = ssvif.build(config, MODEL, Facts(2), start=given)
    start, (state, _) = init_state(method, jax.random.key(0)), trained(method, 3)
    assert not moved(given, start.memory["teacher"]) and moved(given, start.params["segmenter"])
    assert not moved(given, state.memory["teacher"])
    assert moved(start.params["segmenter"], state.params["segmenter"])


def test_given_parameters_are_where_the_segmentation_model_starts() -> None:
    given = given_segmenter()
    config = dataclasses.replace(CONFIG, segmenter_weights="given")
    method = ssvif.build(config, MODEL, Facts(2), start=given)
    assert not moved(given, method.init(jax.random.key(0))["segmenter"])


def test_a_pretrained_anchor_needs_its_parameters() -> None:
    config = dataclasses.replace(CONFIG, anchor="pretrained", segmenter_weights="given")
    with pytest.raises(ValueError, match="needs the parameters"):
        ssvif.build(config, MODEL, Facts(2))


def test_a_collapsed_run_is_doubted() -> None:
    method = build()
    said = method.doubts({"classes_in_use": 1.02, "agreement": 0.99})
    assert len(said) == 1 and "1.02 of 4 classes" in said[0] and "method.anchor" not in said[0]
    (said,) = build(anchor="none").doubts({"classes_in_use": 1.02, "agreement": 0.99})
    assert "have collapsed" in said and "method.anchor = 'balanced' or 'pretrained'" in said
    assert method.doubts({"classes_in_use": 3.0, "classes_told_apart": 2.0}) == []
    said = method.doubts({"classes_in_use": 4.0, "classes_told_apart": 1.0, "agreement": 1.0})
    assert len(said) == 1 and "4.00 of 4 classes in use, 1.00 told apart" in said[0]
    assert "the same in every image" in said[0]
    assert method.doubts({"loss": 1.0}) == []
    # 2 + 4 steps: in the first steps of the second stage networks are new.
    collapsed = {"classes_in_use": 1.0, "agreement": 1.0}
    assert method.doubts({**collapsed, "step": 5}) == []
    assert len(method.doubts({**collapsed, "step": 6})) == 1
    longer = methods.build(
        dataclasses.replace(CONFIG, stage1_epochs=0, stage2_epochs=1500), MODEL, Facts(1)
    )
    assert longer.doubts({**collapsed, "step": 149}) == []
    assert len(longer.doubts({**collapsed, "step": 150})) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"anchor": "pretrained"}, "method.segmenter_weights"),
        ({"classes": 1}, "method.classes"),
        ({"sinkhorn_epsilon": 0.0}, "method.sinkhorn_epsilon"),
        ({"teacher_decay": 1.5}, "method.teacher_decay"),
        ({"guidance_weight": math.nan}, "method.guidance_weight"),
        ({"stage1_epochs": 0.0, "stage2_epochs": 0.0}, "method.stage2_epochs"),
        ({"weighting_window": 0}, "method.weighting_window"),
        ({"region": 0}, "method.region"),
        ({"segmenter_start": "fresh"}, "method.segmenter_start"),
        (
            {
                "anchor": "pretrained",
                "segmenter_weights": "x",
                "segmenter_start": "fresh",
                "teacher_decay": 0.9,
            },
            "method.teacher_decay",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        SSVIFConfig(**changes)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_network_can_be_trained(name: str) -> None:
    """Shapes only, but of everything: parameters, both stages' steps, what is deployed."""
    model = models.create(name)
    method = build(model)
    for stage in method.stages:
        state = jax.eval_shape(functools.partial(init_state, method), jax.random.key(0))
        after, metrics = jax.eval_shape(
            functools.partial(steps.update, stage=stage), state, make_batch()
        )
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert metrics["loss"].shape == ()
    fused = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(method.deploy(state.params)) == jax.tree.structure(fused)


WAYS: dict[str, dict[str, Any]] = {
    "balanced": {"weighting": "dwa", "weighting_window": 1},
    "gradnorm": {"weighting": "gradnorm"},
    "labels": {"guidance": "labels"},
    "teacher": {"anchor": "pretrained", "teacher_decay": 0.5, "segmenter_weights": "given"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [("balanced", "jit"), *((name, "pmap") for name in WAYS)],
)
def test_eight_devices_train_as_one(name: str, way: str) -> None:
    method = build(**WAYS[name])
    stage = method.stages[1]

    def run(make, devices: int) -> tuple[TrainState, dict]:
        mesh = distributed.data_mesh(devices)
        init = jax.jit(
            functools.partial(init_state, method), out_shardings=distributed.replicated(mesh)
        )
        state = init(jax.random.key(0))._replace(step=jnp.int32(stage.start))
        state = jax.device_put(state, distributed.replicated(mesh))
        step = make(stage, mesh)
        for number in range(2):
            batch = make_batch(number, labels=name == "labels")
            if name == "labels":
                # Devices hold unequal numbers of labelled pixels.
                batch["labels"][:3] = 255
                batch["labels"][3, :20] = 255
            given = batch if make is steps.make_pmap_step else distributed.to_devices(batch, mesh)
            state, metrics = step(state, given)
        return jax.device_get(state), jax.device_get(metrics)

    one, said = run(steps.make_jit_step, 1)
    make = steps.make_pmap_step if way == "pmap" else steps.make_jit_step
    many, told = run(make, 8)
    for each, value in said.items():
        assert told[each] == pytest.approx(value, rel=1e-4, abs=1e-6), each
    for a, b in zip(jax.tree.leaves(one.memory), jax.tree.leaves(many.memory), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-4)
    norms = [
        float(jnp.abs(x - y).max())
        for x, y in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True)
    ]
    assert max(norms) < 2e-4  # Adam divides rounding by rounding


def test_the_segmentation_model_may_compute_in_bfloat16() -> None:
    """Its logits differ from those in float32, slightly; parameters and losses stay float32."""
    method = build(segmenter_dtype="bfloat16")
    losses = {}
    for name, each in (("float32", build()), ("bfloat16", method)):
        params = each.init(jax.random.key(0))
        stage = each.stages[1]
        batch = jax.tree.map(jnp.asarray, make_batch())
        examples, _ = stage.prepare(batch, jax.random.key(1), None)
        _, metrics = quick(stage.objective)(
            params, {}, examples, jax.random.key(2), jnp.float32(0.5)
        )
        losses[name] = float(metrics["guidance_loss"])
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
        assert metrics["guidance_loss"].dtype == jnp.float32
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2e-2)
