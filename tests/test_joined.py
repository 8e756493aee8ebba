"""Two sets that are trained on as one."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

import tiny_network
from jaxfuse.config import ConfigError, SourceConfig
from jaxfuse.data.joined import JoinedPairs
from jaxfuse.data.pairs import DataError
from jaxfuse.data.sources import files_of, open_source, require_labels, without_labels
from jaxfuse.data.synthetic import SyntheticPairs
from jaxfuse.train import setup

DAY = SourceConfig(kind="synthetic", scenes=2, height=32, width=48, seed=1)
NIGHT = dataclasses.replace(DAY, scenes=3, height=40, seed=2, sensor="dim")


@pytest.fixture(scope="module")
def both() -> JoinedPairs:
    return JoinedPairs(open_source(DAY), open_source(NIGHT))


def test_one_set_comes_after_the_other(both: JoinedPairs) -> None:
    day, night = both.first, both.second
    assert len(both) == 5
    assert [both.size(i) for i in (0, 1, 2, 4)] == [(32, 48), (32, 48), (40, 48), (40, 48)]
    np.testing.assert_array_equal(both[1].visible, day[1].visible)
    np.testing.assert_array_equal(both[4].infrared, night[2].infrared)
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"pair {index} of 5"):
            both[index]


def test_names_that_both_have_stay_apart(both: JoinedPairs) -> None:
    stems = [both.stem(i) for i in range(len(both))]
    assert len(set(stems)) == 5
    assert stems[0] == both.first.stem(0) and stems[2] == f"beside/{both.second.stem(0)}"
    assert [both[i].stem for i in (0, 2)] == [stems[0], stems[2]]


def test_readers_in_other_processes_get_the_same_pairs(both: JoinedPairs) -> None:
    again = pickle.loads(pickle.dumps(both))
    np.testing.assert_array_equal(again[3].visible, both[3].visible)


def folder(root: Path, stems: tuple[str, ...], labels: bool) -> SourceConfig:
    import cv2

    for kind in ("ir", "vi", *(("labels",) if labels else ())):
        (root / kind).mkdir(parents=True)
        for stem in stems:
            cv2.imwrite(str(root / kind / f"{stem}.png"), np.full((32, 32), 3, np.uint8))
    return SourceConfig(kind="folders", root=str(root))


def test_files_and_labels_are_those_of_either_set(tmp_path: Path) -> None:
    labelled = open_source(folder(tmp_path / "a", ("1",), True))
    bare = open_source(folder(tmp_path / "b", ("1", "2"), False))
    pairs = JoinedPairs(labelled, bare)
    assert [len(files_of(pairs, i)) for i in range(3)] == [3, 2, 2]
    assert files_of(pairs, 2)[0] == tmp_path / "b" / "vi" / "2.png"
    with pytest.raises(DataError, match=r"no label map for 2 of 2 pairs of data.beside"):
        require_labels("data.target", pairs)
    assert len(files_of(without_labels(pairs), 0)) == 2


def test_a_run_trains_on_both_and_aligns_to_the_first() -> None:
    alone = tiny_network.experiment(data__crops="grid")
    joined = tiny_network.experiment(data__crops="grid", data__beside=NIGHT)
    before, after = setup.open_data(alone), setup.open_data(joined)
    patches = {}
    for name, data in (("alone", before), ("joined", after)):
        patches[name] = data.pipeline.items_per_epoch
    side, stride = joined.data.patch_size, joined.data.stride
    more = NIGHT.scenes * len(range(0, NIGHT.height - side + 1, stride))
    more *= len(range(0, NIGHT.width - side + 1, stride))
    assert patches["joined"] == patches["alone"] + more
    assert after.facts.target_means == before.facts.target_means


def test_a_folder_that_is_not_there_is_named() -> None:
    gone = SourceConfig(kind="folders", root="nowhere/night")
    with pytest.raises(ConfigError, match=r"data.beside.root = 'nowhere/night': no such folder"):
        setup.open_data(tiny_network.experiment(data__beside=gone))


def test_scenes_are_still_scenes(both: JoinedPairs) -> None:
    assert isinstance(both.first, SyntheticPairs) and both[0].labels is not None
