"""What run folders hold, and when two of them are equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from jaxfuse import config, distributed
from jaxfuse.checkpoint import Checkpoints, abstract_like
from jaxfuse.train import setup
from jaxfuse.train.state import init_state


def upto(reference: Path, step: int, folder: Path) -> Path:
    """A copy of a run as it was when `step` was its newest checkpoint."""
    shutil.copytree(reference, folder)
    for later in saved_steps(folder):
        if later > step:
            shutil.rmtree(folder / "checkpoints" / str(later))
    return folder


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a run's newest checkpoint, by name."""
    experiment = config.load_json(folder / "config.json")
    data = setup.open_data(experiment)
    _, method = setup.build(experiment, data.facts)
    shapes = jax.eval_shape(lambda key: init_state(method, key), jax.random.key(0))
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=100)
    try:
        abstract = abstract_like(shapes, distributed.replicated(distributed.data_mesh(1)))
        state, info, complaints = checkpoints.restore(abstract)
    finally:
        checkpoints.close()
    assert complaints == []
    assert info["step"] == int(state.step)
    state = state._replace(key=jax.random.key_data(state.key))
    found = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


OF_THE_CLOCK = {
    "time",
    "steps_per_second",
    "examples_per_second",
    "loader_examples_per_second",
    "data_share",
}


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log, without what depends on the clock."""
    lines = (folder / "log.jsonl").read_text(encoding="utf8").splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in OF_THE_CLOCK} for r in found]


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def assert_equal_runs(found: Path, reference: Path) -> None:
    """Every array of the last checkpoint, the weights and the log, to the last bit."""
    ours, theirs = arrays(found), arrays(reference)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    assert records(found) == records(reference)
    weights = [load_file(folder / "weights.safetensors") for folder in (found, reference)]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
