"""Evaluations: every file checked first, honest tables, files that say what their numbers are."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxfuse import cli, metrics
from jaxfuse.cli import words
from jaxfuse.data import images
from jaxfuse.data.images import FileError
from jaxfuse.evaluate import plan, results, score, summary
from jaxfuse.evaluate.plan import Contender, Dataset, Plan, PlanError

NAMES = ("EN", "SD", "MSE", "CC")
SIZE = (24, 32)
STEMS = ("a", "b", "c", "d", "e", "f")


def write_pairs(root: Path, seed: int = 0, stems: tuple[str, ...] = STEMS) -> Path:
    """Registered pairs: colour noise on a ramp, infrared the other way round."""
    rng = np.random.default_rng(seed)
    for name in ("ir", "vi"):
        (root / name).mkdir(parents=True)
    ramp = np.linspace(0.1, 0.9, SIZE[1], dtype=np.float32)[None, :, None]
    for stem in stems:
        visible = np.clip(ramp + rng.normal(0, 0.1, (*SIZE, 3)), 0, 1).astype(np.float32)
        infrared = np.clip(1 - ramp + rng.normal(0, 0.1, (*SIZE, 1)), 0, 1).astype(np.float32)
        images.write(root / "vi" / f"{stem}.png", visible)
        images.write(root / "ir" / f"{stem}.png", infrared)
    return root


def write_fused(root: Path, folder: Path, share: float) -> Path:
    """A method: `share` of the visible image and the rest of the infrared."""
    folder.mkdir(parents=True)
    for path in sorted((root / "vi").iterdir()):
        visible = images.read_visible(path)
        infrared = images.read_infrared(root / "ir" / path.name)
        images.write(folder / path.name, share * visible + (1 - share) * infrared)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def fused(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fused(pairs, tmp_path_factory.mktemp("fused") / "mine", 0.7)


@pytest.fixture(scope="module")
def found(pairs: Path, fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two sets, one in and one out of distribution, and one method."""
    other = write_pairs(tmp_path_factory.mktemp("other"), seed=1)
    write_fused(other, fused.parent / "other", 0.2)
    (fused.parent / "first").symlink_to(fused)
    asked = Plan(
        (Dataset("first", "in", str(pairs)), Dataset("other", "out", str(other))),
        (Contender("mine", str(fused.parent / "{dataset}")),),
        convention="cddfuse",
        metrics=NAMES,
    )
    return score.run(asked, tmp_path_factory.mktemp("out"))


def test_scores_are_those_of_the_metrics(found: Any, pairs: Path, fused: Path) -> None:
    assert [row.metric for row in found.metrics] == list(NAMES)
    assert [row.name for row in found.methods] == ["mine", *plan.BASELINES]
    first = found.datasets[0]
    assert first.stems == STEMS and set(first.sizes) == {SIZE}
    for i, stem in enumerate(STEMS):
        gray = [
            np.asarray(
                metrics.to_gray(
                    np.rint(255 * images.read_visible(path)).astype(np.uint8), "cddfuse"
                ),
                np.float32,
            )
            for path in (
                fused / f"{stem}.png",
                pairs / "vi" / f"{stem}.png",
                pairs / "ir" / f"{stem}.png",
            )
        ]
        alone = metrics.score(*(g[None] for g in gray), convention="cddfuse", names=NAMES)
        for name in NAMES:
            value = first.values["mine"][name][i]
            assert value == pytest.approx(float(alone[name][0]), rel=1e-5), (stem, name)


def test_the_baselines_are_what_they_say(found: Any) -> None:
    first = found.datasets[0]
    # One source alone differs from it by nothing: its error is half of that to the other.
    np.testing.assert_allclose(
        first.values["visible"]["MSE"], first.values["infrared"]["MSE"], rtol=1e-5
    )
    # The mean of two images is half as far from each of them.
    ratio = first.values["average"]["MSE"] / first.values["visible"]["MSE"]
    np.testing.assert_allclose(ratio, 0.5, atol=0.01)
    averages = score.baselines(np.array([[3.0, 4.0]]), np.array([[4.0, 4.0]]))
    assert averages["average"].tolist() == [[4.0, 4.0]]
    assert averages["maximum"].tolist() == [[4.0, 4.0]]


def test_files_hold_everything(found: Any, tmp_path: Path) -> None:
    written = results.save(
        found, tmp_path / "new" / "out", summary.files(found, summary.summarise(found))
    )
    assert [path.name for path in written] == [
        "evaluation.json",
        "scores.csv",
        "summary.csv",
        "summary.json",
        "table.md",
    ]
    again = results.load(tmp_path / "new" / "out")
    assert again.metrics == found.metrics and again.methods == found.methods
    for before, after in zip(found.datasets, again.datasets, strict=True):
        assert (before.name, before.role, before.stems) == (after.name, after.role, after.stems)
        for method, row in before.values.items():
            for metric, values in row.items():
                np.testing.assert_array_equal(values, after.values[method][metric])
    with written[1].open(encoding="utf8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 5 * len(NAMES) * len(STEMS)
    assert {line["convention"] for line in lines} == {"cddfuse"}
    assert {line["direction"] for line in lines if line["metric"] == "MSE"} == {"lower"}
    assert all(line["version"] and line["channel"] for line in lines)
    value = found.datasets[1].values["mine"]["EN"][2]
    line = next(
        x
        for x in lines
        if (x["dataset"], x["method"], x["image"], x["metric"]) == ("other", "mine", "c", "EN")
    )
    assert float(line["value"]) == value


def test_the_summary_says_what_numpy_says(found: Any) -> None:
    said = summary.summarise(found)["first"]
    for method in ("mine", "average"):
        values = found.datasets[0].values[method]["SD"]
        cell = said.cells[method]["SD"]
        assert cell["mean"] == pytest.approx(values.mean())
        assert cell["low"] <= cell["mean"] <= cell["high"]
        assert (cell["count"], cell["undefined"]) == (len(STEMS), 0)
    assert set(said.tests) == set(plan.BASELINES)  # the reference itself is not tested
    for method in said.tests:
        for test in said.tests[method].values():
            assert 0 < test["p"] <= test["adjusted"] <= 1
    # Each metric ranks 5 rows, so ranks add up.
    assert sum(said.ranks.values()) == pytest.approx(15)
    assert said.ranked_on == NAMES


def test_a_loss_out_of_distribution_is_negative(found: Any) -> None:
    fall = summary.drop(found, summary.summarise(found))
    assert fall is not None and (fall["inside"], fall["outside"]) == (["first"], ["other"])
    cells = dict(zip(fall["metrics"], np.reshape(fall["rows"][0]["cells"], (-1, 2)), strict=True))
    for name, (base, change) in cells.items():
        inside, outside = (scores.values["mine"][name].mean() for scores in found.datasets)
        assert base == pytest.approx(inside)
        sign = -1 if name == "MSE" else 1
        assert change == pytest.approx(sign * 100 * (outside - inside) / abs(inside)), name


def test_undefined_values_are_counted_not_averaged(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for stem in STEMS:
        visible = images.read_visible(pairs / "vi" / f"{stem}.png")
        images.write(folder / f"{stem}.png", np.full_like(visible, 0.5) if stem == "b" else visible)
    asked = Plan(
        (Dataset("set", "in", str(pairs)),),
        (Contender("flat", str(folder)),),
        convention="cddfuse",
        metrics=NAMES,
    )
    found = score.run(asked, tmp_path / "out")
    assert found.undefined == [("set", "flat", "CC", 1, "b")]
    cell = summary.summarise(found)["set"].cells["flat"]["CC"]
    assert (cell["count"], cell["undefined"]) == (5, 1) and math.isfinite(cell["mean"])
    text = results.to_json(found)
    assert "NaN" not in text and json.loads(text)["datasets"][0]["values"]["flat"]["CC"][1] is None


def test_weights_fuse_the_pairs_first(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def load(name: str) -> Any:
        assert name == str(net)

        def fuse(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
            made.append(1)
            return 0.7 * visible + 0.3 * infrared

        return fuse

    net = tmp_path / "net.safetensors"
    net.write_bytes(b"first")
    monkeypatch.setattr(score.predict, "load", load)
    folder = write_fused(pairs, tmp_path / "fused", 0.7)
    asked = Plan(
        (Dataset("set", "in", str(pairs)),),
        (Contender("files", str(folder)), Contender("net", weights=str(net))),
        convention="cddfuse",
        metrics=NAMES,
    )
    seen: list[tuple[int, int, str]] = []
    found = score.run(asked, tmp_path / "out", lambda *said: seen.append(said))
    assert seen[-1] == (6, 6, "set/f")
    values = found.datasets[0].values
    for name in NAMES:
        np.testing.assert_array_equal(values["files"][name], values["net"][name])
    assert found.datasets[0].files["net"][0] == "pictures/set/net/a.png"
    picture = tmp_path / "out" / "pictures" / "set" / "net" / "f.png"
    assert picture.exists() and len(made) == 6
    # The same weights and pairs: the pictures stay. One pair changed, then the weights.
    score.run(asked, tmp_path / "out")
    assert len(made) == 6
    later = picture.stat().st_mtime_ns + 10**9
    os.utime(pairs / "vi" / "f.png", ns=(later, later))
    score.run(asked, tmp_path / "out")
    assert len(made) == 7
    os.utime(pairs / "vi" / "f.png", ns=(1, 1))
    net.write_bytes(b"second")
    score.run(asked, tmp_path / "out")
    assert len(made) == 13


def break_size(folder: Path) -> None:
    images.write(folder / "c.png", np.zeros((24, 30, 3), np.float32))


def break_missing(folder: Path) -> None:
    (folder / "b.png").unlink()
    (folder / "d.png").unlink()


def break_twice(folder: Path) -> None:
    images.write(folder / "a.bmp", np.zeros((*SIZE, 3), np.float32))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_size, r"c\.png: 24x30 pixels, but its pair is 24x32: fuse at full size"),
        (break_missing, r"no picture for 2 of 6 pairs of set: b, d: fuse them too"),
        (break_twice, r"a\.bmp and a\.png have the same stem: keep one"),
    ],
)
def test_wrong_pictures_are_named_before_anything_is_computed(
    damage: Any, words: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_fused(pairs, tmp_path / "fused", 0.5)
    damage(folder)
    monkeypatch.setattr(score.metrics, "score", None)
    asked = Plan((Dataset("set", "in", str(pairs)),), (Contender("m", str(folder)),))
    with pytest.raises(FileError, match=words):
        score.run(asked, tmp_path / "out")


ONE = (Dataset("set", "in", "pairs"),)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Plan(()), "nothing to evaluate on"),
        (lambda: Plan(ONE * 2), "dataset 'set' is there twice"),
        (
            lambda: Plan(ONE, (Contender("average", "x"),)),
            "method 'average': the baseline is called so",
        ),
        (lambda: Plan(ONE, (Contender("a/b", "x"),)), "method name 'a/b'"),
        (lambda: Plan(ONE, (Contender("m"),)), "method 'm': give either fused or weights"),
        (lambda: Plan(ONE, (Contender("m", "x", "y"),)), "give either fused or weights"),
        (lambda: Plan(ONE, convention="mine"), "convention 'mine': choose one of jaxfuse, cddfuse"),
        (lambda: Plan(ONE, convention="cddfuse", metrics=("Qcb",)), "'Qcb' is not defined by"),
        (
            lambda: Plan(ONE, reference="m").check_reference(),
            "reference 'm' is not a method: choose one of visible",
        ),
        (lambda: Plan((Dataset(" "),)), "dataset name ' '"),
    ],
)
def test_impossible_plans_are_refused(make: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make()


PROTOCOL = """
convention = "zoo"
metrics = ["EN", "SD"]
reference = "ours"
[[datasets]]
name = "road"
root = "data/road"
split = "splits/road.txt"
[[datasets]]
name = "tno"
role = "out"
infrared = "tno/thermal"
visible = "tno/visual"
[[methods]]
name = "ours"
weights = "crossfuse"
[[methods]]
name = "theirs"
fused = "theirs/{dataset}"
"""


def test_a_protocol_file_is_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "protocol.toml"
    path.write_text(PROTOCOL, encoding="utf8")
    read = plan.read_protocol(path)
    assert read.convention == "zoo" and read.metrics == ("EN", "SD") and read.reference == "ours"
    road, tno = read.datasets
    assert (road.role, tno.role) == ("in", "out")
    assert road.root == str(tmp_path / "data/road") and tno.visible == str(tmp_path / "tno/visual")
    assert read.methods == (
        Contender("ours", weights="crossfuse"),
        Contender("theirs", fused=str(tmp_path / "theirs/{dataset}")),
    )
    more = plan.from_words(str(path), Dataset(""), ["x=y"], [], convention="cddfuse", dtype="")
    assert [m.name for m in more.methods] == ["ours", "theirs", "x"]
    assert (more.convention, more.metrics) == ("cddfuse", ("EN", "SD"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("root =", "rot =", r"protocol\.toml: datasets 1: unknown 'rot': use name, role, root"),
        ('role = "out"', 'role = "away"', r"protocol\.toml: .*role"),
        ('reference = "ours"', 'reference = "no"', r"protocol\.toml: reference 'no' is not a met"),
        ('convention = "zoo"', "convention = ", r"protocol\.toml: not TOML"),
        ("[[methods]]", "[methods]", r"protocol\.toml: (methods must be|not TOML)"),
        ("convention", "conventions", r"protocol\.toml: the file: unknown 'conventions'"),
    ],
)
def test_a_wrong_protocol_file_is_named(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "protocol.toml"
    path.write_text(PROTOCOL.replace(old, new), encoding="utf8")
    with pytest.raises(PlanError, match=words):
        plan.from_words(str(path), Dataset(""), [], [])


def test_a_protocol_may_compare_with_a_method_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "protocol.toml"
    path.write_text(PROTOCOL.replace('reference = "ours"', 'reference = "x"'), encoding="utf8")
    assert plan.from_words(str(path), Dataset(""), ["x=y"], []).compared_to == "x"
    with pytest.raises(PlanError, match="leave out --root, --ir, --vi and --split"):
        plan.from_words(str(path), Dataset("", split="s.txt"), ["x=y"], [])


def test_options_given_twice_add_up() -> None:
    given = ["--fused", "a", "b", "--out", "o", "--fused=c", "--metrics", "EN", "--report"]
    assert words.gather(("--fused", "--metrics"), given) == [
        "--out",
        "o",
        "--report",
        "--fused",
        "a",
        "b",
        "c",
        "--metrics",
        "EN",
    ]


def test_metrics_that_no_image_is_large_enough_for_are_undefined(
    pairs: Path, tmp_path: Path
) -> None:
    asked = Plan((Dataset("set", "in", str(pairs)),), convention="zoo", metrics=("MS_SSIM",))
    found = score.run(asked, tmp_path / "out")
    assert np.isnan(found.datasets[0].values["average"]["MS_SSIM"]).all()
    said = summary.summarise(found)
    assert json.loads(summary.files(found, said)["summary.json"])["drop"] is None


def test_damage_in_the_last_file_is_found_before_anything_is_computed(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_fused(pairs, tmp_path / "fused", 0.5)
    whole = (folder / "f.png").read_bytes()
    (folder / "f.png").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(score.metrics, "score", None)
    asked = Plan((Dataset("set", "in", str(pairs)),), (Contender("m", str(folder)),))
    with pytest.raises(FileError, match=r"f\.png"):
        score.run(asked, tmp_path / "out")


def test_pictures_with_hardly_any_levels_are_remarked_on(pairs: Path, tmp_path: Path) -> None:
    folder = write_fused(pairs, tmp_path / "fused", 0.5)
    images.write(folder / "c.png", np.full((*SIZE, 3), 1 / 255, np.float32))
    asked = Plan(
        (Dataset("set", "in", str(pairs)),), (Contender("m", str(folder)),), metrics=("EN",)
    )
    (remark,) = score.run(asked, tmp_path / "out").settings["remarks"]
    assert "c.png: levels 1 to 1 of 255" in remark


def test_results_are_replaced_on_request_only(tmp_path: Path) -> None:
    results.make_room(tmp_path / "new", False)
    stale = tmp_path / "new" / "report.html"
    stale.write_text("old", encoding="utf8")
    with pytest.raises(FileError, match=r"report\.html: is there already: .*--overwrite"):
        results.make_room(tmp_path / "new", False)
    results.make_room(tmp_path / "new", True)
    assert not stale.exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tree: tree["datasets"][0]["values"].pop("mine"), "mine"),
        (lambda tree: tree["datasets"][0]["values"]["mine"]["EN"].pop(), "5 values of EN"),
        (lambda tree: tree.update(reference="who"), "reference who"),
    ],
)
def test_incomplete_results_are_refused(
    found: Any, damage: Any, words: str, tmp_path: Path
) -> None:
    tree = json.loads(results.to_json(found))
    damage(tree)
    (tmp_path / "evaluation.json").write_text(json.dumps(tree), encoding="utf8")
    with pytest.raises(results.ResultsError, match=words):
        results.load(tmp_path)


def test_too_few_pairs_are_said_to_be(found: Any) -> None:
    few = dataclasses.replace(found.datasets[0], stems=("a", "b", "c", "d", "e", "f"))
    assert "6 pairs cannot show a difference" in summary.significance(found, few)
    many = dataclasses.replace(few, stems=tuple("abcdefghij"))
    assert summary.significance(found, many).startswith("* differs from mine")


def test_the_command_scores_and_prints(
    pairs: Path,
    fused: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jaxfuse import distributed

    monkeypatch.setattr(distributed, "compilation_cache", lambda: tmp_path)
    given = [
        "evaluate",
        "--root",
        str(pairs),
        "--fused",
        f"mine={fused}",
        "--out",
        str(tmp_path / "out"),
        "--convention",
        "cddfuse",
        "--metrics",
        *NAMES,
    ]
    assert cli.main([*given, "--report"]) == 0
    out = capsys.readouterr().out
    assert "MSE ↓" in out and "mine" in out and "maximum" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json",
        "scores.csv",
        "summary.csv",
        "summary.json",
        "table.md",
        "report.html",
    }
    assert cli.main(given) == 1
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["evaluate", "--out", str(tmp_path / "x")]) == 1
    assert "no pairs: give --root DIR" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert cli.main(["report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "r.html")]) == 1
    assert "give a folder of `jaxfuse evaluate`" in capsys.readouterr().err


def test_a_convention_that_scores_colours_gets_them(pairs: Path, tmp_path: Path) -> None:
    asked = Plan(
        (Dataset("set", "in", str(pairs)),), convention="vifb_color", metrics=("EN", "SD", "MI")
    )
    found = score.run(asked, tmp_path / "out").datasets[0]
    visible = 255.0 * images.read_visible(pairs / "vi" / f"{found.stems[0]}.png")
    assert visible.std(axis=(0, 1)).std() > 0.1  # its channels differ
    wanted = visible.std(axis=(0, 1)).mean()
    assert found.values["visible"]["SD"][0] == pytest.approx(wanted, rel=1e-5)
    infrared = 255.0 * images.read_visible(pairs / "ir" / f"{found.stems[0]}.png")
    assert found.values["infrared"]["SD"][0] == pytest.approx(infrared[..., 0].std(), rel=1e-5)
