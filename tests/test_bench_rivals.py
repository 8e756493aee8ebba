"""Published networks from checkouts, here made-up ones: what is called, and what is said."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import pretrain, rivals, summary
from bench.sides import BenchError
from jaxfuse.infer import predict

CODE = """
import torch, torchvision.models as models
from timm.models.layers import DropPath, to_2tuple, trunc_normal_

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.drop = DropPath(0.5)
        self.sides = to_2tuple(3)

    def forward(self, *images):
        image = images[0] if len(images) == 1 else torch.maximum(*images)
        return self.scale * self.drop(image)[:, -1:]

class Colours(Network):
    def forward(self, *images):
        return super().forward(*images) * torch.tensor([4.0, 1.0, 0.5])[:, None, None]

def myIFCNN(fuse_scheme):
    assert models.resnet101(pretrained=True).conv1.out_channels == 64
    return Colours()

def MODEL(in_channel):
    return Network()

def FusionNet(output):
    return Network()
"""


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three; SeAFusion without weights."""
    torch = pytest.importorskip("torch", reason="published networks need PyTorch")
    root = tmp_path_factory.mktemp("rivals")
    for name, rival in rivals.RIVALS.items():
        (root / name / rival.network).parent.mkdir(parents=True)
        (root / name / rival.network).write_text(CODE, encoding="utf8")
        if name != "SeAFusion":
            (root / name / rival.weights).parent.mkdir(parents=True, exist_ok=True)
            torch.save({"scale": torch.tensor(0.5)}, root / name / rival.weights)
    return root


def test_each_is_called_as_its_own_script_does(checkouts: Path) -> None:
    visible, infrared = np.random.default_rng(0).random((2, 5, 7), np.float32)
    larger = np.maximum(visible, infrared)
    channels = [np.floor(np.minimum(255 * gain * larger, 255)) for gain in (2.0, 0.5, 0.25)]
    gray = np.rint(0.299 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2])
    expected = {
        "SeAFusion": larger,  # random weights are 1 here
        "IFCNN": gray / 255,
        "DATFuse": np.floor(255 * 0.5 * visible) / 255,  # its input's second channel
    }
    assert rivals.found(checkouts) == list(expected)
    for name, image in expected.items():
        found = rivals.network(checkouts, name)(visible, infrared)
        np.testing.assert_allclose(found, image, atol=1e-6)
        visible_rgb = np.stack([visible, visible / 2, visible / 4], -1)
        if name != "SeAFusion":
            np.testing.assert_array_equal(rivals.RIVALS[name].picture(found, visible_rgb), found)
    told = rivals.facts(checkouts)
    assert set(told["IFCNN"]) == {"network", "weights"} and set(told["SeAFusion"]) == {"network"}


def test_seafusions_picture_is_gray_of_the_stretched_colours_that_its_script_writes() -> None:
    """What its script does, number for number."""
    fused, rgb = np.array([[0.5, 0.25]], np.float32), np.zeros((1, 2, 3), np.float32)
    rgb[0, 0] = 0.2, 0.1, 0.1
    moved = 0.5 - (0.299 * 0.2 + 0.701 * 0.1)  # colours move with their luma
    levels = np.array([0.2 + moved, 0.1 + moved, 0.1 + moved])
    red, green, blue = np.floor(255 * (levels - 0.25) / (levels.max() - 0.25))
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    found = rivals.RIVALS["SeAFusion"].picture(fused, rgb)
    np.testing.assert_allclose(255 * found, [[expected, 0.0]], atol=1e-3)
    flat = rivals.RIVALS["SeAFusion"].picture(np.full((2, 2), 0.5, np.float32), np.ones((2, 2, 1)))
    np.testing.assert_array_equal(flat, 0.0)


def test_nothing_stands_in_afterwards(checkouts: Path) -> None:
    before = {name: sys.modules.get(name) for name in ("timm", "torchvision.models")}
    rivals.network(checkouts, "DATFuse")
    assert {name: sys.modules.get(name) for name in before} == before


def test_a_folder_without_checkouts_says_so(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no checkout in it: put at least one of SeAFusion"):
        rivals.found(tmp_path)


def test_pictures_of_every_set(checkouts: Path, tmp_path: Path) -> None:
    import cv2

    data = tmp_path / "data"
    for which in ("roadscene", "msrs", "tno"):
        for kind, level in (("vi", 100), ("ir", 200)):
            (data / which / kind).mkdir(parents=True)
            for stem in ("1", "2"):
                picture = np.full((8, 10), level, np.uint8)
                cv2.imwrite(str(data / which / kind / f"{stem}.png"), picture)
    (data / "splits").mkdir()
    for which in ("roadscene_val", "msrs_val"):
        (data / "splits" / f"{which}.txt").write_text("2\n", encoding="utf8")
    rivals.pictures(checkouts, data, tmp_path / "out")
    made = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    names = ("DATFuse", "IFCNN")
    validation = [f"{w}/{n}/2.png" for w in ("msrs_val", "roadscene_val") for n in names]
    assert made == sorted([*validation, *(f"tno/{n}/{s}.png" for n in names for s in "12")])
    told = json.loads((tmp_path / "out" / rivals.FACTS).read_text(encoding="utf8"))
    assert {name: set(of) for name, of in told.items()} == {
        name: {"network", "weights"} for name in ("IFCNN", "DATFuse")
    }
    fused = cv2.imread(str(tmp_path / "out" / "tno" / "DATFuse" / "1.png"), cv2.IMREAD_UNCHANGED)
    assert fused.shape == (8, 10) and np.all(fused == 50)
    asked = pretrain.protocol(data, tmp_path / "out")
    assert 'name = "IFCNN"' in asked and 'name = "crossfuse"' in asked
    assert asked.count("split = ") == 2 and asked.count('role = "out"') == 1
    (tmp_path / "out" / rivals.FACTS).unlink()
    with pytest.raises(BenchError, match=r"rivals\.json and .* in DATFuse, IFCNN: make"):
        pretrain.score(data, tmp_path / "work", tmp_path / "out")


def test_checkouts_without_weights_make_no_pictures(checkouts: Path, tmp_path: Path) -> None:
    (tmp_path / "SeAFusion").symlink_to(checkouts / "SeAFusion")
    with pytest.raises(BenchError, match=r"no weights to fuse with: add .*fusionmodel_final\.pth"):
        rivals.pictures(tmp_path, tmp_path, tmp_path / "out")


def test_scores_are_told_and_counted() -> None:
    cells = {
        "ours": {"EN": [2.0, 1.0, 3.0], "SD": [5.0, 4.0, 6.0]},
        "theirs": {"EN": [1.0, 0.5, 1.5], "SD": [7.0, 6.0, 8.0]},
        "plain": {"EN": [1.0, 0.5, 1.5]},
    }
    result = {"metrics": ["EN", "SD"], "scores": {"tno": cells}, "pairs": {"tno": 17}}
    result |= {"weights": {"ours.safetensors": "0f"}, "commits": {"ours": "1234567"}}
    assert pretrain.metrics_won(result, ["tno"], "ours", "theirs") == ["EN"]
    told = pretrain.lines(result)
    assert told[2] == "| ours.safetensors | 1234567 | 0f |"
    assert told[4] == "tno, 17 pairs:"
    assert told[6] == "| | EN | SD |"
    assert told[8] == "| ours | 2 (1 to 3) | 5 (4 to 6) |"
    assert told[10] == "| plain | 1 (0.5 to 1.5) | - |"
    assert json.loads(json.dumps(result)) == result


def test_metrics_are_won_over_all_pairs_of_several_sets_together() -> None:
    scores = {
        "few": {"lite": {"EN": [9.0]}, "crossfuse": {"EN": [1.0]}, "IFCNN": {"EN": [0.0]}},
        "many_val": {"lite": {"EN": [2.0]}, "crossfuse": {"EN": [3.0]}, "IFCNN": {"EN": [0.0]}},
        "some_val": {"lite": {"EN": [4.0]}, "crossfuse": {"EN": [3.5]}, "IFCNN": {"EN": [5.0]}},
    }
    for rows in scores.values():
        rows["DATFuse"] = rows["SeAFusion"] = {"EN": [0.0]}
    pairs = {"few": 1, "many_val": 30, "some_val": 10}
    result = {"metrics": ["EN"], "scores": scores, "pairs": pairs}
    assert pretrain.metrics_won(result, ["few", "many_val"], "lite", "crossfuse") == []
    assert pretrain.metrics_won(result, ["few", "some_val"], "lite", "crossfuse") == ["EN"]
    head, _, *rows = summary.quality(result)
    assert head == "| | few | many_val | some_val | validation pairs together |"
    assert rows[1] == "| `lite` better than IFCNN | 1 of 1 | 1 of 1 | 0 of 1 | 1 of 1 |"
    assert rows[3] == "| `lite` better than crossfuse | 1 of 1 | 0 of 1 | 1 of 1 | 0 of 1 |"


def test_rows_of_others_stay_where_nobody_elses_pictures_are_scored() -> None:
    kinds = {"convention": "zoo", "metrics": ["EN"], "pairs": {"tno": 17}}
    before = {
        **kinds,
        "versions": {"commit": "1234567"},
        "scores": {"tno": {"lite": {"EN": [1.0]}, "IFCNN": {"EN": [2.0]}, "odd": {"EN": [3.0]}}},
    }
    fresh = {**kinds, "versions": {"commit": "7654321"}, "scores": {"tno": {"lite": {"EN": [4.0]}}}}
    before["rivals"] = {"IFCNN": {"weights": "0f"}}
    fresh["rivals"] = {}
    kept = pretrain.with_rows_of_others(copy.deepcopy(fresh), before)
    assert kept["rivals"] == {"IFCNN": {"weights": "0f"}}
    assert kept["scores"]["tno"] == {"lite": {"EN": [4.0]}, "IFCNN": {"EN": [2.0]}}
    assert kept["carried"] == {"IFCNN": "1234567"}
    other = {**copy.deepcopy(fresh), "pairs": {"tno": 16}}
    assert pretrain.with_rows_of_others(copy.deepcopy(other), before) == other


def test_rims_are_levels_beside_what_is_hot(monkeypatch: pytest.MonkeyPatch) -> None:
    def maximum(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
        fused = np.maximum(visible, infrared)
        fused[80, 59] = 100 + infrared[0, 0]
        return fused

    monkeypatch.setattr(predict, "load", lambda name: maximum)
    result = pretrain.rims(["any"], ["again=lite"])
    assert result["command"] == "python -m bench.pretrain rims --data DATA --also again=WEIGHTS"
    assert result["also"]["again"]["experiment"] == "packaged_lite_contrast"
    assert (
        result["also"]["again"]["commit"] and result["levels"]["again"] == result["levels"]["any"]
    )
    told = pretrain.rim_lines(result)
    assert told[0].endswith("| 5 px | 4 px | 3 px | 2 px | 1 px |")
    assert told[2].startswith("| any | 0 | 128 |") and told[2].endswith("| 128 | 100 |")
    assert told[3].startswith("| any | 30 | 128 |") and told[3].endswith("| 128 | 130 |")
