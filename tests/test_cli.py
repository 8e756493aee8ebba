"""The command line: exit codes, one line for each mistake, arguments that reach their job."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import cv2
import jax
import numpy as np
import pytest

import jaxfuse
import tiny_network
from jaxfuse import cli, config, demo, distributed, experiments, models, weights
from jaxfuse.cli import pictures, words
from jaxfuse.config import Experiment
from jaxfuse.data import sources
from jaxfuse.data.patches import read_grid
from jaxfuse.infer import folders, predict
from jaxfuse.train import loop

HEAVY = (
    "jax",
    "flax",
    "optax",
    "orbax",
    "grain",
    "matplotlib",
    "torch",
    "tensorflow_datasets",
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tiny network is a model, the tests' compilation cache stays, the folder is empty."""
    monkeypatch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)
    monkeypatch.setattr(distributed, "compilation_cache", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A config file."""
    path = tmp_path / "tiny.json"
    path.write_text(config.to_json(tiny_network.experiment()), encoding="utf8")
    return path


def write_pairs(root: Path, infrared: str, visible: str, sensor: str = "clear") -> Path:
    """A folder of pairs, 32x48: one scene for each letter, none where it is a space."""
    source = config.SourceConfig(
        kind="synthetic", scenes=len(visible), height=32, width=48, seed=3, sensor=sensor
    )
    scenes = sources.open_source(source)
    for folder, stems in (("ir", infrared), ("vi", visible)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i, stem in enumerate(stems):
            pair = scenes[i]
            image = pair.infrared if folder == "ir" else pair.visible[..., ::-1]
            if stem != " ":
                cv2.imwrite(str(root / folder / f"{stem}.png"), np.rint(image * 255))
    return root


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    """Runs a command that must fail with `code`, say so in one line, and print nothing else."""
    assert cli.main(list(arguments)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("jaxfuse: "), err
    return err


# What is asked for.


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h"]]
    + [[name, "--help"] for name in cli.COMMANDS]
    + [["data", job, "-h"] for job in ("check", "list", "prepare")],
    ids=" ".join,
)
def test_help_is_printed(arguments: list[str], capsys) -> None:
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: jaxfuse")
    assert err == ""


def test_help_of_fuse_names_the_weights_it_takes_by_itself(capsys) -> None:
    cli.main(["fuse", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"weights in the package; empty is {predict.DEFAULT_WEIGHTS}" in shown


def test_help_lists_every_command_and_preset(capsys) -> None:
    cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)
    cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    for name, line in experiments.describe_presets().items():
        assert name in shown and line in shown


def test_help_of_a_preset_lists_its_fields_and_values(capsys) -> None:
    assert cli.main(["train", "demo", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--train.batch-size" in shown and "--run DIR" in shown
    assert f"(default: {experiments.find('demo').data.external.top_k})" in shown


def test_version(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{jaxfuse.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["train"], ["data"]], ids=" ".join)
def test_without_arguments_usage_is_an_error(arguments: list[str], capsys) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: jaxfuse")


def test_help_needs_nothing_heavy(fresh_python) -> None:
    code = f"""
import sys
from jaxfuse import cli
codes = [cli.main(a) for a in (["--help"], ["train", "--help"], ["train", "demo", "--help"],
                               ["fuse", "--help"], ["data", "check", "--help"],
                               ["data", "prepare", "--help"])]
print(codes, sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    result = fresh_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0] []"


@pytest.mark.parametrize("arguments", ["--help", "train demo --help"])
def test_a_reader_that_leaves_is_no_error(arguments: str, repo: Path, tmp_path: Path) -> None:
    """As `jaxfuse ... | head -1`, where head has ended already."""
    end, pipe = os.pipe()
    os.close(end)
    result = subprocess.run(
        [sys.executable, "-m", "jaxfuse", *arguments.split()],
        stdout=pipe,
        stderr=subprocess.PIPE,
        cwd=repo,
        timeout=60,
        check=False,
        text=True,
    )
    os.close(pipe)
    assert result.stderr == ""
    assert result.returncode == 1


# What is wrong.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train nope", ["no preset named 'nope'", "crossfuse, ", "demo", "run folder"]),
        ("align nope", ["no preset named 'nope'"]),
        ("fly", ["no command 'fly'", "train, fuse, evaluate, report, segments, align"]),
        ("train absent.json", ["absent.json", "not a readable JSON config"]),
        ("train absent.py", ["absent.py: no such file"]),
        ("train demo --run", ["--run: name a folder"]),
        ("train demo --run gs://bucket/run", ["gs://bucket/run: an address", "mount it as a file"]),
        ("train demo --data.target.root=s3://b/a", ["jaxfuse: s3://b/a: an address"]),
        ("train --run x demo", ["train --run: name a preset, a file or a run folder first"]),
        ("train demo --train.batch-size 0", ["train.batch_size = 0: use at least 1"]),
        ("train demo --method.crop-size 99", ["method.crop_size = 99: must not exceed data.pat"]),
        (
            "train demo --data.external.pool 4 --data.external.keep 5",
            ["data.external.keep = 5: K must lie in 1..data.external.pool (4)"],
        ),
        ("train demo --train.devices 99", ["train.devices = 99, but JAX sees 8 cpu device(s)"]),
        (
            "align demo --k 100000",
            ["--k = 100000, but the external set has 768 patches"],
        ),
        ("align demo --k -1", ["--k -1: keep at least one patch"]),
        ("align demo --out a.jpg", ["--out a.jpg: the picture is a PNG"]),
        ("align demo --target-split s.txt", ["--target-split s.txt: give its folder too"]),
        ("demo --steps -1", ["train.steps_per_epoch = -1: use 0 or more"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_usage_is_one_line(arguments: str, words: list[str], capsys, tmp_path: Path) -> None:
    said = complaint(capsys, *arguments.split(), code=2)
    assert all(word in said for word in words), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("align demo --external absent", ["absent", "no such folder"]),
        ("align demo --target absent", ["absent", "no such folder"]),
        ("fuse --ir a --vi b --out c --weights absent.npz", ["absent.npz: no such file"]),
        ("convert absent.pth out.npz", ["absent.pth: no such file"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failure_is_one_line(arguments: str, words: list[str], capsys, tmp_path: Path) -> None:
    said = complaint(capsys, *arguments.split(), code=1)
    assert all(word in said for word in words), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "found"),
    [("--train.batch-size=many", "--train.batch-size"), ("--train.batchsize=3", "batchsize")],
)
def test_an_option_that_cannot_be_read_is_named(option: str, found: str, capsys) -> None:
    assert cli.main(["train", "demo", option]) == 2
    out, err = capsys.readouterr()
    assert out == "" and found in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("bad.json", "{", ["bad.json: not a readable JSON config"]),
        ("bad.json", '{"sede": 1}', ["bad.json: unknown field 'sede'"]),
        ("bad.json", '{"train": {"batch_size": "x"}}', ["bad.json", "batch_size"]),
        ("bad.json", '{"train": {"batch_size": 0}}', ["train.batch_size = 0"]),
        ("bad.py", "def get(:", ["bad.py: SyntaxError"]),
        ("bad.py", "import no_such_module", ["bad.py: ModuleNotFoundError", "no_such_module"]),
        ("bad.py", "x = 1", ["bad.py: defines no get()"]),
        ("bad.py", "def get(): return 3", ["bad.py: get() gave int, not an Experiment"]),
    ],
)
def test_a_bad_file_is_named(name: str, text: str, words: list[str], capsys, tmp_path) -> None:
    (tmp_path / name).write_text(text, encoding="utf8")
    said = complaint(capsys, "train", name, code=2)
    assert all(word in said for word in words), said


def test_unpaired_stems_are_one_line(capsys, tmp_path: Path) -> None:
    write_pairs(tmp_path / "set", "abc", "abd")
    said = complaint(capsys, "align", "demo", "--target", "set", code=1)
    assert "set" in said and ("c" in said and "d" in said)
    assert not (tmp_path / "alignment.png").exists()


def test_every_other_error_has_an_exit_code(tiny: Path, monkeypatch, capsys) -> None:
    for error, code, line in (
        (loop.Preempted("r: stopped"), 75, "jaxfuse: r: stopped\n"),
        (loop.TrainingError("r: step 3"), 1, "jaxfuse: r: step 3\n"),
        (KeyboardInterrupt(), 1, "jaxfuse: interrupted\n"),
        (OSError(28, "No space left on device", "x/y"), 1, "jaxfuse: x/y: No space left"),
    ):

        def run(experiment: Experiment, folder: Path, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(loop, "run", run)
        assert cli.main(["train", str(tiny)]) == code
        assert capsys.readouterr().err.startswith(line)


# What reaches the jobs.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Experiment, Path]]:
    """Runs `train` without training; gives what would have been trained, and where."""

    def ask(*arguments: str) -> tuple[Experiment, Path]:
        seen = []

        def run(experiment: Experiment, folder: Path) -> loop.Outcome:
            seen.append((experiment, Path(folder)))
            return loop.Outcome(7, 0.25, Path(folder))

        monkeypatch.setattr(loop, "run", run)
        assert cli.main(["train", *arguments]) == 0
        return seen[0]

    return ask


def test_a_preset_trains_in_a_folder_of_its_name(asked, capsys) -> None:
    experiment, folder = asked("demo")
    assert experiment == experiments.find("demo")
    assert folder == Path("runs/demo")
    assert capsys.readouterr().out == (
        "runs/demo: 7 steps, loss 0.2500\nruns/demo/weights.safetensors\n"
    )


@pytest.mark.parametrize("run", [["--run", "a/b"], ["--run=a/b"]], ids=" ".join)
def test_fields_are_overridden_wherever_they_stand(asked, run: list[str]) -> None:
    experiment, folder = asked(
        "demo",
        "--train.batch-size",
        "6",
        *run,
        "--method.no-flips",
        "--name=mine",
        "--data.external.sensor",
        "haze",
    )
    expected = experiments.find("demo")
    expected = dataclasses.replace(
        expected,
        name="mine",
        train=dataclasses.replace(expected.train, batch_size=6),
        method=dataclasses.replace(expected.method, flips=False),
        data=dataclasses.replace(
            expected.data, external=dataclasses.replace(expected.data.external, sensor="haze")
        ),
    )
    assert experiment == expected
    assert folder == Path("a/b")
    assert asked("demo", "--name=mine")[1] == Path("runs/mine")


def test_files_and_run_folders_are_experiments_too(asked, tiny: Path, tmp_path: Path) -> None:
    assert asked(str(tiny)) == (tiny_network.experiment(), Path("runs/tiny"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_bytes(tiny.read_bytes())
    assert asked("old") == (tiny_network.experiment(), Path("old"))
    assert asked("old", "--run", "new")[1] == Path("new")
    (tmp_path / "mine.py").write_text(
        "from jaxfuse.config import Experiment\ndef get(): return Experiment(name='my', seed=3)\n"
    )
    assert asked("mine.py") == (Experiment(name="my", seed=3), Path("runs/my"))


def test_a_folder_that_has_a_presets_name_is_not_its_run(asked, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "fused.png").write_bytes(b"")
    assert asked("demo") == (experiments.find("demo"), Path("runs/demo"))


def test_align_shows_what_is_selected(tiny: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(["align", str(tiny), "--k", "5", "--out", "pictures/a.png"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "kept 5 of 36 patches" in out and "pictures/a.png and pictures/a.json" in out
    picture = cv2.imread("pictures/a.png")
    assert min(picture.shape[:2]) > 500 and picture.std() > 10
    found = json.loads(Path("pictures/a.json").read_text(encoding="utf8"))

    data = tiny_network.experiment().data
    target, other = (
        read_grid(sources.open_source(source), 16, 16) for source in (data.target, data.external)
    )
    mu = 255 * target.visible.mean((0, 1, 2), dtype=np.float64)
    distances = np.abs(255 * other.visible.mean((1, 2), dtype=np.float64) - mu).sum(1)
    best = np.argsort(distances, kind="stable")[:5]
    assert (found["candidates"], found["kept"]) == (36, 5)
    np.testing.assert_allclose(found["target_means"], mu, atol=1e-3)
    np.testing.assert_allclose(
        [p["distance"] for p in found["patches"]], distances[best], atol=1e-3
    )
    assert [[p["y"], p["x"]] for p in found["patches"]] == other.position[best].tolist()
    kept = other.visible[best].astype(np.float64)
    np.testing.assert_allclose(found["means_before"], 255 * kept.mean((0, 1, 2)), atol=1e-3)
    after = 255 * (kept ** (1 / np.array(found["gamma"]))).mean((0, 1, 2))
    np.testing.assert_allclose(found["means_after"], after, atol=1e-2)
    np.testing.assert_allclose(found["means_after"], mu, atol=0.02)


def test_align_takes_other_folders(tiny: Path, tmp_path: Path, capsys) -> None:
    write_pairs(tmp_path / "one", "abc", "abc")
    write_pairs(tmp_path / "two", "de", "de", sensor="dim")
    (tmp_path / "few.txt").write_text("e\n", encoding="utf8")
    arguments = ["align", str(tiny), "--k", "3", "--target", "one", "--external", "two"]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--external-split", "few.txt", "--out", "b.png"]) == 0
    all_, few = (json.loads(Path(f"{n}.json").read_text()) for n in ("alignment", "b"))
    assert (all_["candidates"], few["candidates"]) == (12, 6)
    assert {p["stem"] for p in few["patches"]} == {"e"}
    plain = Path("plain.json")
    plain.write_text(config.to_json(config.Experiment()), encoding="utf8")
    capsys.readouterr()
    said = complaint(capsys, "align", str(plain), code=2)
    assert "plain.json: has no external set: give --external DIR" in said


def test_data_check_says_whether_a_set_is_sound(tmp_path: Path, capsys) -> None:
    write_pairs(tmp_path / "good", "abc", "abc")
    assert cli.main(["data", "check", "good"]) == 0
    assert capsys.readouterr().out.startswith("3 pairs, 0 errors")
    write_pairs(tmp_path / "bad", "abc", "ab ")
    (tmp_path / "bad" / "vi" / "a.png").write_bytes(b"no picture")
    assert cli.main(["data", "check", "bad"]) == 1
    shown = capsys.readouterr().out
    assert "a.png" in shown and "c" in shown
    (tmp_path / "only.txt").write_text("b\n", encoding="utf8")
    assert cli.main(["data", "check", "bad", "--split", "only.txt"]) == 0
    assert cli.main(["data", "check", "absent"]) == 1


def test_data_check_takes_the_values_of_a_class_list(tmp_path: Path, capsys) -> None:
    write_pairs(tmp_path / "set", "a", "a")
    (tmp_path / "set" / "labels").mkdir()
    size = cv2.imread(str(tmp_path / "set" / "vi" / "a.png")).shape[:2]
    labels = np.full(size, 14, np.uint8)  # FMB's last class
    assert cv2.imwrite(str(tmp_path / "set" / "labels" / "a.png"), labels)
    for classes, status, said in (
        ("fmb", 0, "1 pair, 0 errors"),
        ("msrs", 1, "labels 14 in"),
        ("14", 1, "classes has values 0..13"),
    ):
        assert cli.main(["data", "check", "set", "--classes", classes]) == status
        assert said in capsys.readouterr().out


def test_fuse_writes_pictures_and_names_those_it_cannot(tmp_path: Path, capsys) -> None:
    params = tiny_network.create(models.Compute()).init(jax.random.key(0))
    weights.save_weights("tiny.safetensors", tiny_network.NAME, jax.device_get(params))
    write_pairs(tmp_path / "set", "abc", "abc")
    (tmp_path / "set" / "vi" / "b.png").write_bytes(b"no picture")
    arguments = ["fuse", "--ir", "set/ir", "--vi", "set/vi", "--weights", "tiny.safetensors"]
    assert cli.main([*arguments, "--out", "fused"]) == 1
    out, err = capsys.readouterr()
    assert out == "2 pictures in fused\n"
    assert any(line.startswith("jaxfuse: ") and "b.png" in line for line in err.splitlines())
    assert sorted(p.name for p in Path("fused").iterdir()) == ["a.png", "c.png"]
    assert cv2.imread("fused/a.png").shape == (32, 48, 3)
    said = complaint(capsys, *arguments, "--out", "fused", code=1)
    assert "exists already" in said and "--overwrite" in said
    single = ["--ir", "set/ir/a.png", "--vi", "set/vi/a.png", "--out", "one.png", "--bits", "16"]
    assert cli.main(["fuse", *single, "--weights", "tiny.safetensors"]) == 0
    assert capsys.readouterr().out == "one.png\n"
    assert cv2.imread("one.png", cv2.IMREAD_UNCHANGED).dtype == np.uint16


def test_progress_is_a_line_now_and_then_off_a_terminal(capsys) -> None:
    report = words.progress("fusing")
    for done in range(1, 4):
        report(done, 3, "a.png")
    words.progress("fusing")(1, 1, "a.png")
    assert capsys.readouterr().err.splitlines()[-1] == "fusing 3/3 a.png"


def test_what_is_slow_is_said_once_and_what_is_not_is_not(capsys) -> None:
    with words.if_slow("slow", seconds=0.05):
        time.sleep(0.5)
    with words.if_slow("quick", seconds=0.5):
        pass
    with words.if_slow("called off", seconds=0.05) as called_off:
        called_off()
        time.sleep(0.5)
    assert capsys.readouterr().err == "slow\n"


def test_fuse_says_so_where_the_first_picture_takes_long(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    for folder in ("ir", "vi"):
        (tmp_path / folder).mkdir()
        for stem in "ab":
            path = tmp_path / folder / f"{stem}.png"
            assert cv2.imwrite(str(path), np.full((8, 8), 100, np.uint8))
    pause = [0.5, 0.5]
    monkeypatch.setattr(folders, "fuse", lambda rgb, *_, **__: time.sleep(pause.pop(0)) or rgb)
    soon = functools.partial(words.if_slow, seconds=0.2)
    monkeypatch.setattr(pictures, "if_slow", soon)
    given = ["fuse", "--ir", str(tmp_path / "ir"), "--vi", str(tmp_path / "vi"), "--overwrite"]
    given += ["--out", str(tmp_path / "out")]
    assert cli.main(given) == 0
    assert capsys.readouterr().err.count("fusing: the first of a size takes longest") == 1
    # Once there is a picture, what follows may take its time.
    pause[:] = [0.0, 0.5]
    assert cli.main(given) == 0
    assert "takes longest" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pictures", "videos", "export"])
def test_a_place_that_takes_no_files_is_named_before_any_work(
    tmp_path: Path, monkeypatch, capsys, command: str
) -> None:
    for name in ("ir", "vi"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((8, 8), 100, np.uint8))
    # Full, read-only or foreign: whoever runs the tests may be allowed to write everywhere.
    refused = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(folders.tempfile, "TemporaryFile", Mock(side_effect=refused))
    monkeypatch.setattr(folders, "fuse", Mock(side_effect=AssertionError("worked before")))
    pair = ["--ir", str(tmp_path / "ir.png"), "--vi", str(tmp_path / "vi.png")]
    given = ["fuse", *pair, "--out", str(tmp_path / "a.png")]
    if command == "videos":
        given = [word.replace(".png", ".mkv") for word in given]
        for name in ("ir", "vi"):
            (tmp_path / f"{name}.mkv").touch()
    if command == "export":
        given = ["export", "lite", "--out", str(tmp_path / "a.stablehlo")]
    said = complaint(capsys, *given, code=1)
    assert f"{tmp_path}: takes no files (Read-only file system): choose a place" in said


def test_the_demo_leaves_other_folders_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf8")
    said = complaint(capsys, "demo", "--out", str(tmp_path), code=2)
    assert f"{tmp_path}: holds notes.txt, which no demo made" in said
    said = complaint(capsys, "demo", "--out", str(tmp_path / "notes.txt"), code=2)
    assert "notes.txt: is a file: name a folder" in said
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert "run" in demo.MADE
