"""CrossFuse's training: schedules, stages, optimizers and what is done to a batch.

A tiny network trains through all steps of both stages; NumPy repeats every step in float64.
"""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize, signal

import tiny_network
from jaxfuse import methods, models
from jaxfuse.config import CrossFuseConfig
from jaxfuse.methods import Facts, Method, base, crossfuse
from jaxfuse.methods.examples import EXTERNAL_INDEX
from jaxfuse.models import Compute
from jaxfuse.shapes import Batch, Metrics, Params
from jaxfuse.train import steps
from jaxfuse.train.state import TrainState, init_state

MODEL = tiny_network.create(Compute())
FUSION = ("fuse_high", "fuse_low")
CONFIG = CrossFuseConfig(
    stage1_epochs=2,
    stage2_epochs=3,
    halve_every_epochs=1,
    learning_rate=1e-2,
    learning_rate_floor=2e-3,
    crop_size=12,
)
STEPS_PER_EPOCH = 2
LUMA = np.array([0.299, 0.587, 0.114])

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make_batch(count: int, seed: int = 0, size: int = 16) -> dict[str, np.ndarray]:
    """Patches of 8-bit colours and of gray, as the pipeline yields them."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (count, size, size, 4)).astype(np.float32) / 255
    index = np.arange(10 * seed, 10 * seed + count, dtype=np.int32)
    return {"visible": levels[..., :3], "infrared": levels[..., 3:], "index": index}


# Schedules.


def weights(config: CrossFuseConfig, progress: np.ndarray) -> np.ndarray:
    weight = functools.partial(crossfuse.self_supervision_weight, config)
    return np.asarray(jax.jit(jax.vmap(weight))(jnp.asarray(progress, jnp.float32)))


def test_self_supervision_falls_from_its_start_to_zero():
    progress = np.linspace(0.0, 1.0, 121)
    theta = weights(CrossFuseConfig(), progress)
    np.testing.assert_allclose(theta[[0, 60, 120]], [0.1, 0.05, 0.0], atol=1e-8)
    np.testing.assert_allclose(theta, 0.1 * (np.cos(np.pi * progress) + 1) / 2, atol=1e-8)
    assert (np.diff(theta) < 0).all()
    np.testing.assert_allclose(
        weights(CrossFuseConfig(self_supervision=0.4), progress), 4 * theta, atol=1e-7
    )


def test_published_self_supervision_rises_again():
    steps_per_epoch = 25
    step = np.arange(120 * steps_per_epoch)
    epoch = 40 + step // steps_per_epoch
    theta = weights(CrossFuseConfig(schedule="published"), step / len(step))
    expected = 0.1 * (np.cos(np.pi * epoch / 120) + 1) / 2
    # float32 may place the first step of an epoch in the epoch before.
    first = step % steps_per_epoch == 0
    np.testing.assert_allclose(theta[~first], expected[~first], atol=1e-7)
    np.testing.assert_allclose(theta[first], expected[first], atol=1.4e-3)
    by_epoch = dict(zip(epoch[~first], theta[~first], strict=True))
    assert by_epoch[40] == pytest.approx(0.075, abs=1e-6)
    assert by_epoch[120] == pytest.approx(0.0, abs=1e-8)
    assert by_epoch[159] == pytest.approx(0.0239, abs=1e-4)
    assert min(by_epoch, key=by_epoch.__getitem__) == 120


def test_learning_rate_is_halved_down_to_its_floor():
    config = CrossFuseConfig()
    schedule = crossfuse.learning_rate(config, steps_per_epoch=10)
    count = np.arange(0, 1700)
    rate = np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(count)))
    np.testing.assert_allclose(rate, np.maximum(1e-4 * 0.5 ** (count // 200), 1e-6), rtol=1e-6)
    assert rate[199] == pytest.approx(1e-4)
    assert rate[200] == pytest.approx(5e-5)
    assert rate[-1] == pytest.approx(1e-6)
    fractional = crossfuse.learning_rate(dataclasses.replace(config, halve_every_epochs=0.25), 10)
    assert float(fractional(jnp.asarray(1))) == pytest.approx(1e-4)
    assert float(fractional(jnp.asarray(2))) == pytest.approx(5e-5)


# Stages.


def build(**changes: Any) -> Method:
    config = dataclasses.replace(CONFIG, **changes)
    return methods.build(config, MODEL, Facts(STEPS_PER_EPOCH))


def test_stage_boundaries():
    method = build()
    assert [(s.name, s.start, s.steps, s.stop) for s in method.stages] == [
        ("reconstruction", 0, 4, 4),
        ("fusion", 4, 6, 10),
    ]
    assert method.steps == 10
    names = [method.stage_at(step).name for step in (0, 3, 4, 9, 10, 99)]
    assert names == ["reconstruction"] * 2 + ["fusion"] * 4
    params = MODEL.init(jax.random.key(0))
    assert method.deploy(params) is params


def test_epochs_may_be_fractions_and_stages_may_be_left_out():
    method = build(stage1_epochs=0.75, stage2_epochs=0.1)
    assert [(s.name, s.start, s.steps) for s in method.stages] == [
        ("reconstruction", 0, 2),
        ("fusion", 2, 1),
    ]
    (only,) = build(stage1_epochs=0).stages
    assert (only.name, only.start, only.steps) == ("fusion", 0, 6)
    (only,) = build(stage2_epochs=0).stages
    assert (only.name, only.steps) == ("reconstruction", 4)


def test_a_network_that_cannot_reconstruct_needs_no_first_stage():
    model = dataclasses.replace(MODEL, name="half", reconstruct=None)
    with pytest.raises(ValueError, match=r"'half' cannot reconstruct.*stage1_epochs to 0"):
        methods.build(CONFIG, model, Facts(STEPS_PER_EPOCH))
    config = dataclasses.replace(CONFIG, stage1_epochs=0)
    assert len(methods.build(config, model, Facts(STEPS_PER_EPOCH)).stages) == 1


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(ValueError, match=r"no method named 'crossfuze'.*crossfuse"):
        methods.build(SimpleNamespace(name="crossfuze"), MODEL, Facts(1))


def test_per_module_leaves_resting_modules_and_their_state():
    params = {"a": {"w": jnp.ones(3)}, "b": {"w": jnp.ones(2)}}
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    both = {"a": optax.adam(0.1), "b": optax.sgd(0.2, momentum=0.9)}
    tx = base.per_module(both, ("b",))
    state = tx.init(params)
    updates, after = tx.update(grads, state, params)
    np.testing.assert_array_equal(updates["a"]["w"], 0.0)
    assert after["a"] is state["a"]
    expected, _ = both["b"].update(grads["b"], both["b"].init(params["b"]), params["b"])
    np.testing.assert_array_equal(updates["b"]["w"], expected["w"])
    np.testing.assert_allclose(after["b"][0].trace["w"], 0.5)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    with pytest.raises(ValueError, match="give the parameters"):
        tx.update(grads, state)


# Ten steps, repeated by NumPy.


class Taken(NamedTuple):
    """One step of the run."""

    before: TrainState
    after: TrainState
    metrics: Metrics
    gradients: Params
    """Of the objective at `before`, from a program of their own."""


@pytest.fixture(scope="module")
def method() -> Method:
    return build()


@pytest.fixture(scope="module")
def step_of(method) -> dict[str, Any]:
    """`update` of each stage, compiled once."""
    return {
        stage.name: compiled(functools.partial(steps.update, stage=stage))
        for stage in method.stages
    }


@pytest.fixture(scope="module")
def taken(method, step_of) -> list[Taken]:
    slopes = {s.name: compiled(jax.grad(s.objective, has_aux=True)) for s in method.stages}
    state = compiled(functools.partial(init_state, method))(jax.random.key(3))
    run = []
    for step in range(method.steps):
        stage, batch = method.stage_at(step), make_batch(3, seed=step)
        examples, _ = stage.prepare(batch, state.key, None)
        key = jax.random.fold_in(state.key, step)
        progress = jnp.float32((step - stage.start) / stage.steps)
        gradients, _ = slopes[stage.name](state.params, {}, examples, key, progress)
        after, metrics = step_of[stage.name](state, batch)
        run.append(Taken(*jax.device_get((state, after, metrics, gradients))))
        state = after
    return run


def test_every_step_is_adam_per_module(taken):
    """Gradients clipped to 0.01 per module; counts and rates from a module's own first step."""
    moments: dict[str, list[Any]] = {}
    counts = dict.fromkeys(tiny_network_modules(), 0)
    for number, step in enumerate(taken):
        for name in counts:
            before, after = step.before.params[name], step.after.params[name]
            if number < 4 and name in FUSION:
                jax.tree.map(np.testing.assert_array_equal, before, after)
                continue
            rate = max(1e-2 * 0.5 ** (counts[name] // STEPS_PER_EPOCH), 2e-3)
            counts[name] += 1
            moved = adam(step.gradients[name], moments.setdefault(name, []), counts[name], rate)
            for key, change in moved.items():
                found = after[key].astype(np.float64) - before[key]
                where = f"step {number}, {name}/{key}"
                np.testing.assert_allclose(found, change, atol=2e-3 * rate, err_msg=where)
    assert counts == {"encoder": 10, "decoder": 10, "fuse_low": 6, "fuse_high": 6}


def tiny_network_modules() -> list[str]:
    return list(dict.fromkeys(module for module, _ in tiny_network.SHAPES))


def adam(gradients: Params, moments: list[Any], count: int, rate: float) -> Params:
    """The change of one clipped Adam step, float64; `moments` is updated in place."""
    wide = {key: np.asarray(g, np.float64) for key, g in gradients.items()}
    norm = np.sqrt(sum(np.sum(g**2) for g in wide.values()))
    assert norm > 0.01, "a run whose gradients are never clipped would not show it"
    if not moments:
        moments[:] = [{k: np.zeros_like(g) for k, g in wide.items()} for _ in range(2)]
    changes = {}
    for key, g in wide.items():
        g = g * min(1.0, 0.01 / norm)
        moments[0][key] = 0.9 * moments[0][key] + 0.1 * g
        moments[1][key] = 0.999 * moments[1][key] + 0.001 * g**2
        mean, square = moments[0][key] / (1 - 0.9**count), moments[1][key] / (1 - 0.999**count)
        changes[key] = -rate * mean / (np.sqrt(square) + 1e-8)
    return changes


def test_fusion_layers_rest_with_their_state_in_stage_one(taken):
    fresh, end_of_one, end = taken[0].before, taken[3].after, taken[-1].after
    for name in FUSION:
        jax.tree.map(
            np.testing.assert_array_equal, end_of_one.opt_state[name], fresh.opt_state[name]
        )
    counts = {name: adam_counts(end.opt_state[name]) for name in end.opt_state}
    assert counts == {"encoder": {10}, "decoder": {10}, "fuse_low": {6}, "fuse_high": {6}}


def adam_counts(state: Any) -> set[int]:
    """Every count in an optimizer's state: Adam's and the schedule's."""
    return {int(leaf) for leaf in jax.tree.leaves(state) if np.issubdtype(leaf.dtype, np.integer)}


def test_gradient_norm_is_of_all_modules_before_clipping(taken):
    for step in taken:
        norm = np.sqrt(sum(np.sum(g.astype(float) ** 2) for g in jax.tree.leaves(step.gradients)))
        np.testing.assert_allclose(step.metrics["grad_norm"], norm, rtol=1e-5)


def test_losses_are_the_published_sums(taken):
    for number, step in enumerate(taken):
        m = {name: float(value) for name, value in step.metrics.items()}
        if number < 4:
            total = m["reconstruction_visible"] + m["reconstruction_infrared"]
            total += 2 * m["decomposition"] + 5 * m["gradient"]
        else:
            total = m["intensity"] + 10 * m["gradient"] + 2 * m["decomposition"]
            total += m["theta"] * m["consistency"]
            theta = 0.1 * (np.cos(np.pi * (number - 4) / 6) + 1) / 2
            assert m["theta"] == pytest.approx(theta, abs=1e-7)
            assert m["consistency"] > 1e-3
        assert m["loss"] == pytest.approx(total, rel=1e-6)
        ratio = m["correlation_high"] ** 2 / (1.01 + m["correlation_low"])
        assert m["decomposition"] == pytest.approx(ratio, rel=1e-5)
    losses = [float(step.metrics["loss"]) for step in taken]
    assert losses[3] < losses[0]


def test_black_pairs_can_be_learnt_from(method, step_of, taken):
    """All features of a black pair are 0: no root or quotient may break the step."""
    batch = {name: np.zeros_like(array) for name, array in make_batch(3).items()}
    for stage in method.stages:
        state, metrics = step_of[stage.name](taken[stage.start].before, batch)
        assert int(state.bad_step) == -1
        assert np.isfinite(float(metrics["grad_norm"]))


def test_consistency_follows_the_example_not_its_place(method):
    stage, batch = method.stages[1], make_batch(4)
    params = MODEL.init(jax.random.key(0))
    run = compiled(stage.objective)

    def consistency(order: list[int], key: int, index: np.ndarray | None = None) -> float:
        rows = {name: array[order] for name, array in batch.items()}
        if index is not None:
            rows["index"] = index
        examples, _ = stage.prepare(rows, jax.random.key(0), None)
        return float(
            run(params, {}, examples, jax.random.key(key), jnp.float32(0))[1]["consistency"]
        )

    value = consistency([0, 1, 2, 3], key=1)
    assert consistency([2, 0, 3, 1], key=1) == pytest.approx(value, rel=1e-6)
    assert consistency([0, 1, 2, 3], key=2) != pytest.approx(value, rel=1e-4)
    shifted = batch["index"] + 4
    assert consistency([0, 1, 2, 3], key=1, index=shifted) != pytest.approx(value, rel=1e-4)


def test_without_self_supervision_no_crop_is_drawn():
    stage = build(self_supervision=0.0).stages[1]
    batch = make_batch(2)
    del batch["index"]
    examples = {**batch, "visible": batch["visible"][..., :1]}
    _, metrics = jax.eval_shape(
        stage.objective,
        MODEL.init(jax.random.key(0)),
        {},
        examples,
        jax.random.key(0),
        jnp.float32(0),
    )
    assert set(metrics) == {
        "intensity",
        "gradient",
        "decomposition",
        "correlation_low",
        "correlation_high",
    }


# Any network, and a teacher.


def objective_metrics(model, config: CrossFuseConfig, teacher=None) -> Metrics:
    method = methods.build(config, model, Facts(STEPS_PER_EPOCH), teacher=teacher)
    params = method.init(jax.random.key(0))
    batch = make_batch(2)
    examples = {**batch, "visible": batch["visible"][..., :1]}
    objective = compiled(method.stages[-1].objective)
    memory = method.memory(params)
    loss, metrics = objective(params, memory, examples, jax.random.key(1), jnp.float32(0))
    return jax.device_get({**metrics, "loss": loss})


FUSE_ONLY = dataclasses.replace(CONFIG, stage1_epochs=0, self_supervision=0.0)


def test_a_network_without_frequencies_learns_without_decomposition():
    model = models.create("lite")
    found = objective_metrics(model, FUSE_ONLY)
    assert set(found) == {"loss", "intensity", "gradient"}
    assert found["loss"] == pytest.approx(found["intensity"] + 10 * found["gradient"], rel=1e-6)


def test_a_network_imitates_a_teacher_of_another_kind():
    student = models.create("lite")
    params = MODEL.init(jax.random.key(3))
    plain = objective_metrics(student, FUSE_ONLY)
    config = dataclasses.replace(FUSE_ONLY, teacher="given", imitation=2.5)
    found = objective_metrics(student, config, (MODEL, params))
    assert found["loss"] == pytest.approx(plain["loss"] + 2.5 * found["imitation"], rel=1e-6)
    batch = make_batch(2)
    pair = jnp.asarray(batch["visible"][..., :1]), jnp.asarray(batch["infrared"])
    shown = MODEL.apply(params, *pair).image
    fused = student.apply(student.init(jax.random.key(0)), *pair).image
    edges = [np.abs(sobel_sum(np.asarray(x)[..., 0])) for x in (shown, fused)]
    expected = np.abs(np.asarray(shown - fused)).mean() + np.abs(edges[0] - edges[1]).mean()
    assert found["imitation"] == pytest.approx(expected, rel=1e-4)


def sobel_sum(images: np.ndarray) -> np.ndarray:
    """|Sobel_x| + |Sobel_y| of (b, h, w) with zero padding."""
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    return np.stack(
        [
            np.abs(signal.correlate2d(x, kernel, "same"))
            + np.abs(signal.correlate2d(x, kernel.T, "same"))
            for x in images
        ]
    )


def test_a_student_that_is_its_teacher_has_nothing_to_imitate():
    params = MODEL.init(jax.random.key(0))
    found = objective_metrics(MODEL, FUSE_ONLY, (MODEL, params))
    assert found["imitation"] == pytest.approx(0.0, abs=1e-7)


def test_structure_of_both_images_may_count_too():
    model = models.create("lite")
    plain = objective_metrics(model, FUSE_ONLY)
    found = objective_metrics(model, dataclasses.replace(FUSE_ONLY, ssim_weight=0.5))
    assert 0 < found["ssim"] <= 4
    assert found["loss"] == pytest.approx(plain["loss"] + 0.5 * found["ssim"], rel=1e-6)


def test_what_fusion_adds_may_have_to_come_from_the_other_image():
    model = models.create("lite")
    plain = objective_metrics(model, FUSE_ONLY)
    found = objective_metrics(model, dataclasses.replace(FUSE_ONLY, correlation_weight=0.5))
    assert "unexplained" not in plain and 0 < found["unexplained"] < 4
    assert found["loss"] == pytest.approx(plain["loss"] + 0.5 * found["unexplained"], rel=1e-6)


# What is done to a batch.


def prepared(method: Method, batch: Batch, key: int = 0) -> tuple[Batch, Metrics]:
    prepare = compiled(functools.partial(method.stages[0].prepare, axis_name=None))
    return jax.device_get(prepare(batch, jax.random.key(key)))


def test_prepare_takes_the_luma():
    batch = make_batch(3)
    examples, notes = prepared(build(), batch)
    np.testing.assert_allclose(examples["visible"][..., 0], batch["visible"] @ LUMA, atol=2e-7)
    np.testing.assert_array_equal(examples["infrared"], batch["infrared"])
    np.testing.assert_array_equal(examples["index"], batch["index"])
    assert notes == {}


def test_flips_are_paired_and_follow_the_example():
    method, batch = build(flips=True), make_batch(12)
    examples, _ = prepared(method, batch)
    plain = batch["visible"] @ LUMA.astype(np.float32)
    kinds = []
    for row in range(12):
        for kind in np.ndindex(2, 2):
            axes = [axis for axis in (0, 1) if kind[axis]]
            if np.allclose(examples["visible"][row, ..., 0], np.flip(plain[row], axes), atol=1e-6):
                kinds.append(kind)
                expected = np.flip(batch["infrared"][row], axes)
                np.testing.assert_array_equal(examples["infrared"][row], expected)
    assert len(kinds) == 12
    assert len(set(kinds)) == 4
    order = np.random.default_rng(0).permutation(12)
    moved, _ = prepared(method, {name: array[order] for name, array in batch.items()})
    np.testing.assert_array_equal(moved["visible"], examples["visible"][order])
    other, _ = prepared(method, batch, key=1)
    assert not np.array_equal(other["visible"], examples["visible"])


MEANS = (90.0, 120.0, 150.0)


@pytest.fixture(scope="module")
def online() -> Method:
    return methods.build(CONFIG, MODEL, Facts(STEPS_PER_EPOCH, MEANS, kept_online=4))


@pytest.fixture(scope="module")
def pooled() -> Batch:
    """A batch and a pool of patches of different brightness."""
    batch, pool = make_batch(2), make_batch(8, seed=1)
    strength = np.linspace(0.3, 1.0, 8)[[3, 0, 6, 1, 7, 4, 2, 5]].reshape(8, 1, 1, 1)
    levels = np.round(255 * pool["visible"] * strength) / 255
    extra = {"pool_visible": levels.astype(np.float32), "pool_infrared": pool["infrared"]}
    return {**batch, **extra}


def test_online_alignment_appends_the_closest_patches(online, pooled):
    examples, notes = prepared(online, pooled)
    grey = 255.0 * pooled["pool_visible"].astype(np.float64)
    distance = np.abs(grey.mean((1, 2)) - MEANS).sum(1)
    chosen = np.argsort(distance)[:4]
    np.testing.assert_array_equal(notes["external/selected"], chosen)
    assert notes["external/distance"] == pytest.approx(distance[chosen].mean(), rel=1e-5)

    powers = []
    for channel, target in enumerate(MEANS):
        kept = grey[chosen, ..., channel] / 255

        def miss(power: float, kept: np.ndarray = kept, target: float = target) -> float:
            return 255 * np.mean(kept**power) - target

        powers.append(optimize.brentq(miss, 1e-3, 1e3, xtol=1e-12))
    assert notes["external/gamma"] == pytest.approx(np.mean(1 / np.array(powers)), rel=1e-4)
    aligned = (grey[chosen] / 255) ** np.array(powers)
    np.testing.assert_allclose(aligned.mean((0, 1, 2)) * 255, MEANS)

    own = pooled["visible"] @ LUMA
    expected = np.concatenate([own, aligned @ LUMA])
    np.testing.assert_allclose(examples["visible"][..., 0], expected, atol=2e-5)
    infrared = np.concatenate([pooled["infrared"], pooled["pool_infrared"][chosen]])
    np.testing.assert_array_equal(examples["infrared"], infrared)
    index = np.concatenate([pooled["index"], EXTERNAL_INDEX + chosen])
    np.testing.assert_array_equal(examples["index"], index)
    assert examples["index"].dtype == np.int32


def test_online_alignment_is_shared_by_devices(online, pooled, devices):
    """Selection and gamma are of all pools together; each device gets its share of the kept."""
    whole, whole_notes = prepared(online, pooled)
    mapped = jax.pmap(
        lambda batch: online.stages[0].prepare(batch, jax.random.key(0), "data"),
        axis_name="data",
        devices=devices[:2],
    )
    halves = {name: array.reshape(2, -1, *array.shape[1:]) for name, array in pooled.items()}
    examples, notes = jax.device_get(mapped(halves))
    for name, array in notes.items():
        np.testing.assert_allclose(array[0], array[1], err_msg=name)
        np.testing.assert_allclose(array[0], whole_notes[name], rtol=1e-6, err_msg=name)
    # Rows of the two devices: one target pair each, then two kept patches each.
    order = [0, 2, 3, 1, 4, 5]
    for name, array in examples.items():
        joined = array.reshape(6, *array.shape[2:])
        np.testing.assert_allclose(joined, whole[name][order], rtol=0, atol=1e-6, err_msg=name)


def test_online_alignment_needs_the_target_means():
    with pytest.raises(ValueError, match=r"online alignment needs the target"):
        methods.build(CONFIG, MODEL, Facts(STEPS_PER_EPOCH, kept_online=4))
