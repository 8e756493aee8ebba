"""What two processes do together, checked in each of them; started by tests/test_processes.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxfuse import distributed
from jaxfuse.checkpoint import Checkpoints, abstract_like


def _checkpoints(folder: Path, mesh: Mesh) -> tuple[Checkpoints, Any, Any]:
    """Two steps of a state of which each device holds a part; (checkpoints, state, its shape)."""
    shapes = {
        "large": jax.ShapeDtypeStruct((256, 256), jnp.float32),
        "small": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    placed = distributed.by_rule(shapes, mesh)

    def made() -> dict[str, jax.Array]:
        return {"large": jax.random.normal(jax.random.key(0), (256, 256)), "small": jnp.ones(3)}

    state = jax.jit(made, out_shardings=placed)()
    assert not state["large"].is_fully_replicated
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, state, {"step": step}, {"loss": 1.0, "stage": 0.0})
        checkpoints.wait()
    return checkpoints, state, abstract_like(shapes, placed)


def _assert_first_is_restored(checkpoints: Checkpoints, state: Any, abstract: Any) -> str:
    found, info, complaints = checkpoints.restore(abstract)
    assert info["step"] == 1 and checkpoints.steps == [1]
    for name, array in found.items():
        for ours, theirs in zip(
            array.addressable_shards, state[name].addressable_shards, strict=True
        ):
            np.testing.assert_array_equal(ours.data, theirs.data)
    (complaint,) = complaints
    assert "/2: unreadable" in complaint
    assert complaint.endswith("unreadable_checkpoints")
    kept = checkpoints.folder.with_name("unreadable_checkpoints") / "2"
    assert (kept / "state").is_dir()
    return complaint


def truncated_part_of_one(folder: Path) -> None:
    """What the second process wrote is cut: neither restores it, both fall back."""
    mesh = distributed.data_mesh(0, fsdp=2)
    checkpoints, state, abstract = _checkpoints(folder, mesh)
    if distributed.is_chief():
        parts = [p for p in (folder / "2").rglob("*") if "process_1" in str(p) and p.is_file()]
        large = [path for path in parts if path.stat().st_size > 50_000]
        assert large
        for path in large:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    distributed.together("damaged")
    _assert_first_is_restored(checkpoints, state, abstract)


def unreadable_for_one(folder: Path) -> None:
    """The storage of the second process alone fails: neither waits for the other for ever, and what
    is whole is kept."""
    mesh = distributed.data_mesh(0, fsdp=2)
    checkpoints, state, abstract = _checkpoints(folder, mesh)
    if jax.process_index() == 1:
        restored = checkpoints._restored

        def stale(step: int, abstract: Any) -> Any:
            if step == 2:
                raise OSError("stale file handle")
            return restored(step, abstract)

        checkpoints._restored = stale
    said = _assert_first_is_restored(checkpoints, state, abstract)
    other = jax.process_index() == 0
    assert ("another process could not read it" if other else "stale file handle") in said


def numbers(folder: Path) -> None:
    """What processes tell each other."""
    mine = jax.process_index()
    assert distributed.all_agree(True) and not distributed.all_agree(mine == 0)
    found = distributed.of_all_processes(np.array([mine, 7.5], np.float32))
    np.testing.assert_array_equal(found, [[0, 7.5], [1, 7.5]])
    total = distributed.sum_over_processes(np.array([2**31 + mine, 2**31], np.uint32))
    np.testing.assert_array_equal(total, [1, 0])
    assert distributed.from_chief([5, 3] if mine == 0 else [5, 3, 1]) == [5, 3]
    assert distributed.from_chief([] if mine == 0 else [4]) == []


def global_arrays(folder: Path) -> None:
    """From rows of each process, and from whole copies of each."""
    mesh, mine = distributed.data_mesh(), jax.process_index()
    rows = {"x": np.arange(4 * mine, 4 * mine + 4, dtype=np.float32).reshape(2, 2)}
    array = distributed.to_devices(rows, mesh)["x"]
    assert array.shape == (4, 2)
    total = jax.jit(lambda x: x.sum(0), out_shardings=distributed.replicated(mesh))(array)
    np.testing.assert_array_equal(total, [12, 16])
    here = jax.local_devices()[0]
    copies = {
        "key": jax.device_put(jax.random.key(3), here),
        "x": jax.device_put(np.arange(3.0, dtype=np.float32), here),
    }
    made = distributed.to_global(copies, mesh)
    assert made["x"].sharding.is_equivalent_to(distributed.replicated(mesh), 1)
    doubled = jax.jit(lambda x: 2 * x, out_shardings=distributed.replicated(mesh))(made["x"])
    np.testing.assert_array_equal(doubled, [0, 2, 4])
    expected = jax.random.key_data(jax.random.key(3))
    np.testing.assert_array_equal(jax.random.key_data(made["key"]).addressable_data(0), expected)
    parts = jax.device_put(
        np.zeros((256, 128), np.float32),
        distributed.by_rule(jnp.zeros((256, 128)), distributed.data_mesh(0, fsdp=2)),
    )
    whole = distributed.whole_on_host({"a": parts}, distributed.data_mesh(0, fsdp=2))
    assert whole["a"].shape == (256, 128)


CHECKS = (numbers, global_arrays, truncated_part_of_one, unreadable_for_one)


if __name__ == "__main__":
    with distributed.joined():
        for check in CHECKS:
            check(Path(sys.argv[1]) / check.__name__)
            print(f"{check.__name__}: well", flush=True)
