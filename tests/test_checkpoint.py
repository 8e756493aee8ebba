"""Checkpoints: which are kept, what damage does, and that numbers come back to the last bit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfuse import distributed
from jaxfuse.checkpoint import CheckpointError, Checkpoints, abstract_like, checksum


class State(NamedTuple):
    step: jax.Array
    params: dict[str, Any]
    half: jax.Array
    key: jax.Array


def state_at(step: int, devices: int = 1) -> State:
    """Numbers that differ from step to step."""
    rng = np.random.default_rng(step)
    weights = {"a": rng.normal(size=(64, 65)).astype(np.float32), "b": {"c": np.arange(3.0) + step}}
    state = State(
        jnp.int32(step),
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights),
        jnp.linspace(0, step, 7, dtype=jnp.bfloat16),
        jax.random.key(step),
    )
    return jax.device_put(state, distributed.replicated(distributed.data_mesh(devices)))


def abstract(devices: int = 1) -> State:
    return abstract_like(state_at(0), distributed.replicated(distributed.data_mesh(devices)))


def assert_equal(found: State, expected: State) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    """Opens checkpoints in a folder and closes them afterwards."""
    made: list[Checkpoints] = []

    def open_(folder: Path = tmp_path / "checkpoints", **settings: int) -> Checkpoints:
        made.append(Checkpoints(folder, **settings))
        return made[-1]

    yield open_
    for checkpoints in made:
        checkpoints.close()


def save(checkpoints: Checkpoints, step: int, loss: float = 1.0, stage: int = 0) -> None:
    metrics = {"loss": loss, "stage": float(stage)}
    checkpoints.save(step, state_at(step), {"step": step, "config": {"seed": 7}}, metrics)
    checkpoints.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of steps 5 and 10. Not to be written to."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (5, 10):
        save(checkpoints, step)
    checkpoints.close()
    return folder


def test_numbers_come_back_exactly_on_other_devices(opened) -> None:
    save(opened(), 3)
    for devices in (1, 8):
        state, info, complaints = opened().restore(abstract(devices))
        assert_equal(state, state_at(3))
        assert all(len(x.sharding.device_set) == devices for x in jax.tree.leaves(state))
        assert (info["step"], info["config"], complaints) == (3, {"seed": 7}, [])


def test_numbers_come_back_exactly_however_they_are_split(opened, monkeypatch) -> None:
    monkeypatch.setattr(distributed.meshes, "SMALL", 8)
    mesh = distributed.data_mesh(8, fsdp=4)
    whole = state_at(3)
    placed = distributed.by_rule(whole, mesh)
    split = jax.device_put(whole, placed)
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(split))
    assert checksum(split) == checksum(whole)
    checkpoints = opened()
    checkpoints.save(3, split, {"step": 3}, {"loss": 1.0, "stage": 0.0})
    checkpoints.wait()
    for wanted in (abstract(1), abstract(8), abstract_like(whole, placed)):
        state, _, complaints = opened().restore(wanted)
        assert complaints == []
        assert_equal(state, whole)
        for found, asked in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
            assert found.sharding.is_equivalent_to(asked.sharding, found.ndim)


def test_buffers_may_be_donated_at_once(opened) -> None:
    checkpoints = opened()
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    plain = {"a": jnp.arange(1e5), "b": jnp.ones(3)}
    expected = jax.device_get(plain)
    checkpoints.save(1, plain, {}, {})
    for _ in range(3):
        plain = step(plain)
    checkpoints.wait()
    sharding = distributed.replicated(distributed.data_mesh(1))
    found, _, _ = opened().restore(abstract_like(plain, sharding))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_newest_and_best_are_kept(opened) -> None:
    checkpoints = opened(keep_last=2, keep_best=1)
    for step, loss in ((1, 3.0), (2, 0.5), (3, 1.0), (4, 2.0), (5, 4.0)):
        save(checkpoints, step, loss)
    assert checkpoints.steps == [2, 4, 5]
    assert opened(keep_last=2, keep_best=1).steps == [2, 4, 5]


def test_no_number_is_never_the_best(opened) -> None:
    checkpoints = opened(keep_last=1, keep_best=1)
    for step, loss in ((1, 2.0), (2, math.nan), (3, math.inf), (4, -math.inf), (5, 3.0)):
        save(checkpoints, step, loss)
    assert checkpoints.steps == [1, 5]


def test_a_later_stage_is_better_whatever_its_loss(opened) -> None:
    checkpoints = opened(keep_last=1, keep_best=1)
    for step, loss, stage in ((1, 0.1, 0), (2, 9.0, 1), (3, 12.0, 1), (4, 11.0, 1)):
        save(checkpoints, step, loss, stage)
    assert checkpoints.steps == [2, 4]


def test_without_keep_best_only_the_newest_stay(opened) -> None:
    checkpoints = opened(keep_last=2, keep_best=0)
    for step in (1, 2, 3):
        save(checkpoints, step, float(step))
    assert checkpoints.steps == [2, 3]


def damages(content: bytes) -> dict[str, bytes | None]:
    """Ways a file may be damaged; None is a file that is gone."""
    middle = len(content) // 2
    flipped = bytearray(content)
    flipped[middle] ^= 0x10
    return {"cut": content[:middle], "flipped": bytes(flipped), "empty": b"", "gone": None}


def test_damage_is_noticed_wherever_it_is(two: Path, tmp_path: Path, capfd) -> None:
    """Every file of the newest checkpoint in four ways: what comes back was saved, to the bit."""
    newest = two / "10"
    noticed = set()
    for path in sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size):
        name = path.relative_to(two)
        for kind, content in damages(path.read_bytes()).items():
            folder = tmp_path / "copy"
            shutil.copytree(two, folder)
            (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
            checkpoints = Checkpoints(folder)
            state, info, complaints = checkpoints.restore(abstract())
            assert_equal(state, state_at(int(state.step)))
            assert info["step"] == int(state.step)
            if int(state.step) == 5:
                noticed.add((path.parent.name, kind))
                assert len(complaints) == 1 and complaints[0].startswith(f"{folder / '10'}: unread")
                assert "\n" not in complaints[0]
                # The step can be saved again.
                assert checkpoints.steps == [5]
            checkpoints.close()
            shutil.rmtree(folder)
    assert {("d", kind) for kind in ("cut", "flipped", "empty", "gone")} <= noticed
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", ["", "{", '{"loss": 1'])
def test_damaged_metrics_cost_a_rank_and_no_checkpoint(two: Path, tmp_path: Path, content) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(two, folder)
    metrics = folder / "10" / "metrics" / "metrics"
    metrics.write_text(content, encoding="utf8")
    checkpoints = Checkpoints(folder, keep_last=1, keep_best=1)
    state, _, complaints = checkpoints.restore(abstract())
    assert int(state.step) == 10
    assert complaints == [f"{metrics}: unreadable, so this checkpoint no longer counts as best"]
    save(checkpoints, 15, 2.0)
    assert checkpoints.steps == [5, 15]
    checkpoints.close()


def test_a_step_that_was_passed_over_can_be_saved_again(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(two, folder)
    shutil.rmtree(folder / "10" / "state")
    checkpoints = Checkpoints(folder)
    state, _, complaints = checkpoints.restore(abstract())
    assert int(state.step) == 5 and len(complaints) == 1
    save(checkpoints, 10)
    state, _, complaints = checkpoints.restore(abstract())
    assert int(state.step) == 10 and complaints == []
    checkpoints.close()


def test_another_network_is_named_and_nothing_deleted(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(two, folder)
    checkpoints = Checkpoints(folder)
    wanted = abstract()
    sharding = wanted.step.sharding
    other = jax.ShapeDtypeStruct((64, 66), jnp.float32, sharding=sharding)
    more = {**wanted.params["b"], "d": other}
    for params, complaint in (
        ({**wanted.params, "a": other}, "params.a is float32[64, 65], expected float32[64, 66]"),
        ({**wanted.params, "b": more}, "params.b.d is absent, expected float32[64, 66]"),
        ({"a": wanted.params["a"]}, "params.b.c is float32[3], expected absent"),
    ):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(wanted._replace(params=params))
        assert f"{folder}: no readable checkpoint: " in str(caught.value)
        assert str(caught.value).count(complaint) == 2
        assert "delete this folder to start over" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert checkpoints.steps == [5, 10]
    checkpoints.close()


def test_what_was_half_written_is_ignored_and_removed(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(two, folder)
    shutil.copytree(folder / "10" / "info", folder / "15.orbax-checkpoint-tmp" / "info")
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps == [5, 10]
    assert int(checkpoints.restore(abstract())[0].step) == 10
    save(checkpoints, 15)
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ["10", "15"]


def test_an_empty_folder_has_nothing_to_restore(opened, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoints: no readable checkpoint: there is no"):
        opened().restore(abstract())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf8")
    with pytest.raises(
        CheckpointError, match=r"file/checkpoints: cannot open a checkpoint \(.*Not"
    ):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_the_checksum_is_of_names_and_bytes() -> None:
    base = {"a": jnp.arange(4.0), "b": jnp.ones((2, 2)), "key": jax.random.key(1)}
    found = {checksum(base), checksum({**base, "a": jnp.arange(4.0).at[2].add(1e-6)})}
    found |= {checksum({**base, "key": jax.random.key(2)})}
    found |= {checksum({"c": base["a"], "b": base["b"], "key": base["key"]})}
    # The same numbers at other places.
    found |= {checksum({**base, "a": jnp.arange(4.0)[::-1]})}
    assert len(found) == 5
    assert checksum(jax.tree.map(jnp.copy, base)) == checksum(base)
