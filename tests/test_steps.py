"""The training step: one update, alike on one device and eight, under jit and under pmap.

Adam and clipping hide a gradient that is wrong by a factor, so gradient norms are compared too, and
hand-made stages with plain gradient descent are compared with NumPy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny_network
from jaxfuse import distributed, models
from jaxfuse.config import ConfigError
from jaxfuse.losses import decomposition
from jaxfuse.methods import Method, Stage
from jaxfuse.methods.base import per_module
from jaxfuse.train import setup, steps
from jaxfuse.train.state import TrainState, init_state

WAYS = (("jit", 1), ("jit", 8), ("pmap", 8))
"""The ways of running a step that must agree; the first is the reference."""
STAGES = ("reconstruction", "fusion")


class Trained(NamedTuple):
    state: TrainState
    metrics: list[dict[str, np.ndarray]]
    """Of each step."""


@dataclasses.dataclass
class Setting:
    """A method and batches for it; compiled steps are kept."""

    method: Method
    batches: list[dict[str, np.ndarray]]

    def __post_init__(self) -> None:
        self.step = functools.cache(self._step)
        self.initial = functools.cache(self._initial)

    def _step(self, stage: str, way: str, devices: int) -> steps.Step:
        mesh = distributed.data_mesh(devices)
        if way == "pmap":
            return steps.make_pmap_step(self.stage(stage), mesh)
        compiled = steps.make_jit_step(self.stage(stage), mesh)
        return lambda state, batch: compiled(state, distributed.to_devices(batch, mesh))

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.method.stages if stage.name == name)

    def fresh(self, stage: str, devices: int) -> TrainState:
        """A state at the beginning of a stage."""
        # Steps take the arrays away, also those that placing has not copied.
        state = jax.tree.map(jnp.copy, self.initial())
        state = state._replace(step=jnp.int32(self.stage(stage).start))
        return jax.device_put(state, distributed.replicated(distributed.data_mesh(devices)))

    def _initial(self) -> TrainState:
        return jax.jit(lambda key: init_state(self.method, key))(jax.random.key(0))

    def train(self, stage: str, ways: Sequence[tuple[str, int]]) -> Trained:
        """As many steps as ways, one each, from a fresh state."""
        state = self.fresh(stage, ways[0][1])
        metrics = []
        for (way, devices), batch in zip(ways, self.batches, strict=False):
            state, found = self.step(stage, way, devices)(state, batch)
            metrics.append(jax.device_get(found))
        return Trained(state, metrics)


@contextlib.contextmanager
def open_setting(**changes: Any) -> Iterator[Setting]:
    """The tiny experiment with `changes`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)
        experiment = tiny_network.experiment(**changes)
        setup.check(experiment, 8)
        data = setup.open_data(experiment)
        _, method = setup.build(experiment, data.facts)
        with contextlib.closing(data.pipeline.batches()) as batches:
            yield Setting(method, [next(batches) for _ in range(3)])


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    """The tiny network, flips, weak-aggressive loss and online Top-K."""
    with open_setting() as opened:
        yield opened


def leaves(tree: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def largest_difference(a: Any, b: Any) -> float:
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def assert_metrics_agree(found: Trained, reference: Trained) -> None:
    """Loss and gradient norm of each step to 1e-5 relative, Top-K exactly."""
    for ours, theirs in zip(found.metrics, reference.metrics, strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_array_equal(ours["external/selected"], theirs["external/selected"])
        for name in ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    assert int(found.state.step) == int(reference.state.step)
    assert int(found.state.bad_step) == -1


def assert_agree(found: Trained, reference: Trained) -> None:
    """What is above, and parameters to 1e-6."""
    assert_metrics_agree(found, reference)
    assert largest_difference(found.state.params, reference.state.params) <= 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_one_device_eight_devices_and_pmap_agree(setting, stage: str, devices) -> None:
    reference = setting.train(stage, [WAYS[0]] * 3)
    for way in WAYS[1:]:
        assert_agree(setting.train(stage, [way] * 3), reference)
    selections = [m["external/selected"] for m in reference.metrics]
    assert all(len(set(s.tolist())) == 8 for s in selections)
    assert not np.array_equal(selections[0], selections[1])
    start = setting.fresh(stage, 1).params
    assert largest_difference(reference.state.params, start) > 1e-2  # three steps of 1e-2
    frozen = stage == "reconstruction"
    for module in ("fuse_low", "fuse_high"):
        moved = largest_difference(reference.state.params[module], start[module])
        assert (moved == 0.0) == frozen


def test_jit_and_pmap_steps_take_turns(setting, devices) -> None:
    straight = setting.train("fusion", [("jit", 8)] * 3)
    for ways in (("jit", "pmap", "jit"), ("pmap", "jit", "pmap")):
        assert_agree(setting.train("fusion", [(way, 8) for way in ways]), straight)


def test_state_split_over_devices_trains_alike(setting, devices, monkeypatch) -> None:
    monkeypatch.setattr(distributed.meshes, "SMALL", 8)
    mesh = distributed.data_mesh(8, fsdp=4)
    fresh = setting.fresh("fusion", 8)
    placed = distributed.by_rule(fresh, mesh)
    state = jax.device_put(fresh, placed)
    split = [x for x in jax.tree.leaves(state) if not x.is_fully_replicated]
    # Parameters and both averages of Adam, in four parts each.
    assert len(split) >= 6
    assert all(4 * x.addressable_shards[0].data.size == x.size for x in split)
    step = steps.make_jit_step(setting.stage("fusion"), mesh, placed=placed)
    metrics = []
    for batch in setting.batches:
        state, found = step(state, distributed.to_devices(batch, mesh))
        metrics.append(jax.device_get(found))
    assert jax.tree.map(lambda x: x.sharding, state) == placed
    whole = distributed.whole_on_host(state.params, mesh)
    found = Trained(state._replace(params=whole), metrics)
    assert_agree(found, setting.train("fusion", [("jit", 1)] * 3))


def test_only_large_arrays_are_split_along_their_longest_axis(devices) -> None:
    mesh = distributed.data_mesh(8, fsdp=4)

    def axes(*shape: int) -> tuple:
        return tuple(distributed.by_rule(jax.ShapeDtypeStruct(shape, jnp.float32), mesh).spec)

    assert axes(256, 64) == ("fsdp",)
    assert axes(64, 256) == (None, "fsdp")
    assert axes(256, 256) == (None, "fsdp")
    assert axes(3, 3, 130, 128) == (None, None, None, "fsdp")
    assert axes(255, 255) == axes(127, 64) == axes() == ()
    one = distributed.by_rule(
        jax.ShapeDtypeStruct((512, 512), jnp.float32), distributed.data_mesh()
    )
    assert tuple(one.spec) == ()


@pytest.mark.parametrize(("way", "devices"), WAYS[1:])
def test_the_state_is_donated_and_the_batch_is_not(setting, way: str, devices: int) -> None:
    state = setting.fresh("fusion", devices)
    new, _ = setting.step("fusion", way, devices)(state, setting.batches[0])
    jax.block_until_ready(new)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))
    again, _ = setting.step("fusion", way, devices)(new, setting.batches[0])
    assert int(again.step) == tiny_network.STAGE1 + 2


@pytest.mark.parametrize(("way", "devices"), WAYS[1:])
def test_what_is_not_finite_stops_all_learning(setting, way: str, devices: int) -> None:
    good = setting.batches[0]
    bad = {**good, "infrared": good["infrared"].copy()}
    bad["infrared"][5, 3, 3] = np.nan  # one pixel of one row, on one of the devices
    step = setting.step("fusion", way, devices)
    state, _ = step(setting.fresh("fusion", devices), good)
    before = jax.device_get((state.params, state.opt_state))
    state, metrics = step(state, bad)
    assert not np.isfinite(metrics["loss"])
    state, metrics = step(state, good)
    assert np.isfinite(metrics["loss"])
    assert int(state.bad_step) == tiny_network.STAGE1 + 1
    assert int(state.step) == tiny_network.STAGE1 + 3
    assert largest_difference((state.params, state.opt_state), before) == 0.0


def test_an_example_is_augmented_by_its_index_and_the_step(setting) -> None:
    step = setting.step("fusion", "jit", 8)

    def loss(index: np.ndarray, later: int = 0) -> float:
        state = setting.fresh("fusion", 8)
        # The step moves the weight of the weak-aggressive term; the term itself must move too.
        state = state._replace(step=state.step + later)
        _, metrics = step(state, {**setting.batches[0], "index": index})
        return float(metrics["consistency"])

    index = setting.batches[0]["index"]
    assert loss(index) == loss(index.copy())
    assert loss(index) != loss(index + np.uint32(100))
    assert loss(index) != loss(index, later=1)


def test_validation_is_the_loss_without_anything_random() -> None:
    """What a step reports before it moves, where the step itself has nothing random either."""
    plain = {
        "data__external__alignment": "none",
        "method__self_supervision": 0.0,
        "method__flips": False,
    }
    mesh = distributed.data_mesh(8)
    with open_setting(**plain) as opened:
        batch = distributed.to_devices(opened.batches[0], mesh)
        state = opened.fresh("fusion", 8)
        validation = steps.make_validation(opened.stage("fusion"), mesh)
        loss, again = validation(state, batch), validation(state, batch)
        _, metrics = opened.step("fusion", "jit", 8)(state, opened.batches[0])
    assert float(loss) == float(again) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    # Flips and external patches belong to training only.
    with open_setting(method__self_supervision=0.0) as opened:
        flipped = steps.make_validation(opened.stage("fusion"), mesh)(
            opened.fresh("fusion", 8), batch
        )
    assert float(flipped) == pytest.approx(float(loss), rel=1e-6)


def test_bfloat16_stays_close_and_parameters_stay_float32() -> None:
    plain = {
        "data__external__alignment": "none",
        "method__self_supervision": 0.0,
        "method__flips": False,
    }
    found = []
    for dtype in ("bfloat16", "float32"):
        with open_setting(model__compute_dtype=dtype, **plain) as opened:
            found.append(opened.train("fusion", [("jit", 8)] * 3))
    half, whole = found
    for ours, theirs in zip(half.metrics, whole.metrics, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
        assert ours["loss"] != theirs["loss"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.1)
    assert {leaf.dtype for leaf in leaves(half.state.params).values()} == {np.dtype("float32")}
    # Three steps of Adam move a parameter by 3e-2 at most, whatever the gradient's size.
    assert largest_difference(half.state.params, whole.state.params) < 0.03


RATE = 0.1


def toy_stage(objective: Callable[..., Any]) -> Stage:
    """Plain gradient descent on an objective of parameters {"net": {"w": ...}}."""

    def prepare(batch: dict, key: Any, axis_name: str | None = None) -> tuple[dict, dict]:
        return batch, {}

    tx = per_module({"net": optax.sgd(RATE)}, ("net",))
    return Stage("toy", 0, 10, prepare, prepare, objective, tx)


def toy_state(weights: np.ndarray, stage: Stage, devices: int) -> TrainState:
    def init() -> TrainState:
        params = {"net": {"w": jnp.asarray(weights, jnp.float32)}}
        state = stage.tx.init(params)
        return TrainState(jnp.int32(0), params, state, {}, jax.random.key(0), jnp.int32(-1))

    sharding = distributed.replicated(distributed.data_mesh(devices))
    return jax.jit(init, out_shardings=sharding)()


def toy_run(
    stage: Stage, weights: np.ndarray, batch: dict, way: str, devices: int, accumulate: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Weights after one step, and its metrics."""
    mesh = distributed.data_mesh(devices)
    make = steps.make_pmap_step if way == "pmap" else steps.make_jit_step
    step = make(stage, mesh, accumulate)
    given = batch if way == "pmap" else distributed.to_devices(batch, mesh)
    state, metrics = step(toy_state(weights, stage, devices), given)
    return np.asarray(state.params["net"]["w"]), jax.device_get(metrics)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize(("way", "devices"), [("jit", 1), ("jit", 8), ("pmap", 4)])
def test_a_mean_over_examples_has_its_whole_gradient(
    way: str, devices: int, accumulate: int
) -> None:
    """Least squares by hand: any factor, and any part left out, would show in the weights."""
    rng = np.random.default_rng(3)
    x, y, w = rng.normal(size=(16, 5)), rng.normal(size=16), rng.normal(size=5)

    def objective(params, memory, examples, key, progress, axis_name=None):
        errors = examples["x"] @ params["net"]["w"] - examples["y"]
        return jnp.mean(errors**2), {"largest": jnp.max(examples["y"])}

    error = x @ w - y
    gradient = 2 * x.T @ error / len(y)
    batch = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
    moved, metrics = toy_run(toy_stage(objective), w, batch, way, devices, accumulate)
    np.testing.assert_allclose(moved, w - RATE * gradient, rtol=0, atol=2e-6)
    assert metrics["loss"] == pytest.approx(np.mean(error**2), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-6)


def decomposition_by_hand(w: np.ndarray, f: dict[str, np.ndarray]) -> float:
    """cc(high)^2 / (1.01 + cc(low)) in float64, for features high = tanh(w x)."""

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        values = [np.corrcoef(p.ravel(), q.ravel())[0, 1] for p, q in zip(a, b, strict=True)]
        return float(np.mean(values))

    high = [np.tanh(w[i] * f[name]) for i, name in enumerate(("visible", "infrared"))]
    return correlation(*high) ** 2 / (1.01 + correlation(f["visible"], f["infrared"]))


@pytest.mark.parametrize(("way", "devices"), WAYS)
def test_the_decomposition_is_that_of_the_whole_batch(way: str, devices: int) -> None:
    """A batch mean inside a ratio: not the mean over devices of each device's ratio."""
    rng = np.random.default_rng(4)
    features = {name: rng.normal(size=(8, 6, 6, 1)) for name in ("visible", "infrared")}
    features["infrared"] += 0.7 * features["visible"]
    w = np.array([0.8, 1.7])

    def objective(params, memory, examples, key, progress, axis_name=None):
        low = examples["visible"], examples["infrared"]
        high = [jnp.tanh(params["net"]["w"][i] * x) for i, x in enumerate(low)]
        return decomposition.decomposition(*low, *high, axis_name)[0], {}

    gradient = np.empty(2)
    for i, e in enumerate(np.eye(2) * 1e-5):
        up, down = (decomposition_by_hand(w + s * e, features) for s in (1, -1))
        gradient[i] = (up - down) / 2e-5
    batch = {name: x.astype(np.float32) for name, x in features.items()}
    moved, metrics = toy_run(toy_stage(objective), w, batch, way, devices, 1)
    assert metrics["loss"] == pytest.approx(decomposition_by_hand(w, features), rel=1e-5)
    np.testing.assert_allclose(moved, w - RATE * gradient, rtol=0, atol=2e-6)
    # Accumulation sees parts of a batch one by one: there it is the mean of the parts' ratios.
    if way == "jit":
        _, parted = toy_run(toy_stage(objective), w, batch, way, devices, 2)
        halves = [{n: x[i::2] for n, x in features.items()} for i in (0, 1)]
        expected = np.mean([decomposition_by_hand(w, half) for half in halves])
        assert parted["loss"] == pytest.approx(expected, rel=1e-5)
        assert parted["loss"] != pytest.approx(metrics["loss"], rel=1e-3)


@pytest.mark.parametrize(("way", "share"), [("jit", 8), ("pmap", 2)])
def test_accumulate_must_divide_the_examples(way: str, share: int) -> None:
    def objective(params, memory, examples, key, progress, axis_name=None):
        return jnp.mean(examples["x"]) * params["net"]["w"][0], {}

    batch = {"x": np.ones((8, 1), np.float32)}
    with pytest.raises(
        ConfigError, match=rf"train\.accumulate = 3: must divide the {share} examples"
    ):
        toy_run(toy_stage(objective), np.ones(1), batch, way, 4, 3)


def test_rows_that_cannot_be_split_are_refused_by_name(devices) -> None:
    mesh = distributed.data_mesh(3)
    batch = {"index": np.zeros(8, np.uint32)}
    with pytest.raises(ConfigError, match=r"index: 8 rows cannot be split over 3 devices"):
        distributed.to_devices(batch, mesh)

    def objective(params, memory, examples, key, progress, axis_name=None):
        return params["net"]["w"][0], {}

    stage = toy_stage(objective)
    with pytest.raises(ConfigError, match=r"8 rows cannot be split over 3 devices"):
        steps.make_pmap_step(stage, mesh)(toy_state(np.ones(1), stage, 3), batch)
    with pytest.raises(ConfigError, match=r"train\.devices = 99, but JAX sees \d+ cpu device"):
        distributed.data_mesh(99)


@pytest.fixture(scope="module")
def real() -> Iterator[Setting]:
    """The published network and rates, and nothing computed twice, for the time of compiling."""
    given = {"model__name": "crossfuse", "model__remat": "none", "method__learning_rate": 1e-4}
    with open_setting(**given) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "ways"), [("reconstruction", WAYS[1:2]), ("fusion", WAYS[1:])])
def test_crossfuse_agrees_on_one_device_eight_devices_and_pmap(real, stage, ways, devices) -> None:
    """As above with the real network and its published rates; pmap with the stage that has all
    modules.

    Adam divides each gradient by its own size, so where a gradient is itself rounding (below its
    epsilon of 1e-8) the step is too: about 20 of 1.2 million parameters then differ by 1e-6 to
    3e-6, a hundredth of what they moved. Adam's first moments are the gradients, without that.
    """
    reference = real.train(stage, [WAYS[0]] * 3)
    start = real.fresh(stage, 1).params
    assert largest_difference(reference.state.params, start) > 1e-4
    expected, moments = leaves(reference.state.params), leaves(reference.state.opt_state)
    for way in ways:
        found = real.train(stage, [way] * 3)
        assert_metrics_agree(found, reference)
        ours = leaves(found.state.params)
        off = np.concatenate([np.abs(ours[n] - x).ravel() for n, x in expected.items()])
        assert off.max() <= 1e-5
        assert np.mean(off > 1e-6) <= 1e-4
        for name, moment in leaves(found.state.opt_state).items():
            if ".mu" in name:
                scale = np.abs(moments[name]).max()
                np.testing.assert_allclose(moment, moments[name], rtol=0, atol=1e-3 * scale)
