"""Runs: continued bit for bit after a kill, stopped with a reason, never half-written.

Most runs are of the tiny network in this process; what needs a death or an exit code is a process
of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import tiny_network
from jaxfuse import cli, config, distributed, models, weights
from jaxfuse.config import Experiment
from jaxfuse.data import pipeline
from jaxfuse.data.pipeline import Pipeline
from jaxfuse.data.sources import open_source
from jaxfuse.methods import external
from jaxfuse.train import loop, setup
from jaxfuse.train.setup import RunFolderError
from jaxfuse.train.writers import JsonLines, LogError, Terminal
from run_folders import arrays, assert_equal_runs, records, saved_steps, upto

STEPS, STAGE1 = tiny_network.STEPS, tiny_network.STAGE1
REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted. Not to be written to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)
        loop.run(tiny_network.experiment(train__keep_last=100), folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def start(folder: Path, experiment: Experiment, pause: float = 0.0) -> subprocess.Popen[str]:
    """`jaxfuse train` with the tiny network in a process of its own."""
    path = folder.with_name(f"{folder.name}.json")
    path.write_text(config.to_json(experiment), encoding="utf8")
    paths = [str(REPO), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "TINY_PAUSE": str(pause),
    }
    program = [sys.executable, str(Path(tiny_network.__file__).resolve())]
    return subprocess.Popen(
        [*program, "train", str(path), "--run", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Polls every millisecond while the process lives."""
    end = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "waited four minutes"
        time.sleep(0.001)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def last_logged(folder: Path) -> int:
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf8").splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def test_what_a_run_leaves(straight: Path) -> None:
    assert saved_steps(straight) == [3, 4, 6, 9, 12]
    found = records(straight)
    assert [r["step"] for r in found] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [r["stage"] for r in found] == ["reconstruction"] * 3 + ["fusion"] * 5
    assert all(math.isfinite(r["loss"]) and math.isfinite(r["grad_norm"]) for r in found)
    assert "consistency" in found[-1] and "reconstruction_visible" in found[0]
    assert config.load_json(straight / "config.json") == tiny_network.experiment(
        train__keep_last=100
    )
    assert json.loads((straight / "run.json").read_text())["format"] == setup.FORMAT
    params = {k: v for k, v in arrays(straight).items() if k.startswith(".params")}
    weights = load_file(straight / "weights.safetensors")
    assert sorted(v.tobytes() for v in params.values()) == sorted(
        v.tobytes() for v in weights.values()
    )
    assert not list(straight.rglob("*tmp*"))


def test_killed_while_it_saves_a_run_continues_bit_for_bit(straight: Path, tmp_path: Path) -> None:
    folder, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    process = start(folder, tiny_network.experiment(), pause=0.05)
    wait_until(lambda: any(checkpoints.glob("3.orbax-checkpoint-tmp*")), process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert set(saved_steps(folder)) <= {3}

    loop.run(tiny_network.experiment(), folder)
    assert_equal_runs(folder, straight)
    assert not list(checkpoints.glob("*tmp*"))


@pytest.mark.slow
def test_killed_at_any_moment_a_run_continues_bit_for_bit(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, tiny_network.experiment(), pause=0.05)
    wait_until(lambda: last_logged(folder) >= 6, process)
    time.sleep(random.uniform(0.0, 0.2))  # any moment must do, so a new one each time
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL

    loop.run(tiny_network.experiment(), folder)
    assert_equal_runs(folder, straight)
    assert not list((folder / "checkpoints").glob("*tmp*"))


def test_a_stop_request_saves_and_says_so(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = upto(straight, 6, tmp_path / "run")
    path = tmp_path / "tiny.json"
    path.write_text(config.to_json(tiny_network.experiment(train__keep_last=100)))
    without = distributed.to_devices

    def to_devices(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, Any]:
        if batch["index"][0] == 7 * 8:  # the eighth batch
            os.kill(os.getpid(), signal.SIGTERM)
        return without(batch, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "to_devices", to_devices)
        assert cli.main(["train", str(path), "--run", str(folder)]) == 75
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"jaxfuse: {folder}: stopped on request, step 8 of {STEPS} is saved: "
        "give the same command again to continue"
    )
    assert saved_steps(folder) == [3, 4, 6, 8]
    assert [r["step"] for r in records(folder)] == [2, 3, 4, 6, 8]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    assert cli.main(["train", str(folder)]) == 0
    assert_equal_runs(folder, straight)


@pytest.mark.slow
def test_a_process_that_is_asked_to_stop_exits_with_75(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, tiny_network.experiment(), pause=0.1)
    wait_until(lambda: last_logged(folder) >= 2, process)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 75
    stopped = last_logged(folder)
    assert 2 < stopped < STEPS
    assert f"stopped on request, step {stopped} of {STEPS} is saved" in err.splitlines()[-1]
    assert saved_steps(folder)[-1] == stopped

    outcome = loop.run(tiny_network.experiment(), folder)
    assert outcome.steps == STEPS
    ours, theirs = arrays(folder), arrays(straight)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    logged = [r["step"] for r in records(folder)]
    assert logged == sorted({*logged, stopped, STEPS})


def test_two_interrupts_stop_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with loop._stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        assert "Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("step", [3, STAGE1, 9])
def test_continuing_inside_and_between_stages(straight: Path, tmp_path: Path, step: int) -> None:
    folder = upto(straight, step, tmp_path / "run")
    outcome = loop.run(tiny_network.experiment(train__keep_last=100), folder)
    assert outcome.loss == records(straight)[-1]["loss"]
    assert_equal_runs(folder, straight)


@pytest.mark.parametrize(
    "changes",
    [{"train__strategy": "pmap"}, {"train__devices": 1}, {"train__devices": 4}],
    ids=["pmap", "one device", "four devices"],
)
def test_other_devices_continue_with_the_same_examples(
    straight: Path, tmp_path: Path, changes: dict, capsys
) -> None:
    folder = upto(straight, 6, tmp_path / "run")
    loop.run(tiny_network.experiment(train__log_every=1, train__keep_last=1, **changes), folder)
    assert f"continuing {folder} from step 6 of {STEPS}" in capsys.readouterr().err
    found = records(folder)
    assert [r["step"] for r in found] == [2, 3, 4, *range(6, STEPS + 1)]
    expected = {r["step"]: r for r in records(straight)}
    for record in found:
        # Lines that cover the same steps.
        if record["step"] in (9, 2, 3, 4, 6):
            for name in ("loss", "external/distance", "external/gamma", "consistency"):
                value = expected[record["step"]].get(name)
                if value is not None:
                    assert record[name] == pytest.approx(value, rel=1e-5), name
    ours, theirs = arrays(folder), arrays(straight)
    for name in theirs:
        if name.startswith(".params"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6)
    assert STEPS in saved_steps(folder) and len(saved_steps(folder)) <= 2


@pytest.mark.slow
def test_a_run_goes_to_fewer_devices_and_back(straight: Path, tmp_path: Path) -> None:
    folder = upto(straight, 3, tmp_path / "run")
    for last, devices in ((6, 1), (9, 4), (STEPS, 0)):
        loop.run(tiny_network.experiment(train__keep_last=100, train__devices=devices), folder)
        if last < STEPS:  # as if it had been killed after this checkpoint
            for later in saved_steps(folder):
                if later > last:
                    shutil.rmtree(folder / "checkpoints" / str(later))
    found, expected = records(folder), records(straight)
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"train__batch_size": 16}, "train.batch_size = 8, now asked for 16: set it back"),
        (
            {"seed": 6, "method__learning_rate": 0.5, "train__log_every": 1},
            "seed = 5, now asked for 6 (and 1 more): set it back",
        ),
        ({"model__compute_dtype": "bfloat16"}, "= 'float32', now asked for 'bfloat16'"),
    ],
)
def test_a_changed_config_is_refused(straight: Path, changes: dict, complaint: str) -> None:
    before = contents(straight)
    with pytest.raises(RunFolderError) as caught:
        loop.run(tiny_network.experiment(**changes), straight)
    assert str(caught.value).startswith(f"{straight}: this run has ")
    assert complaint in str(caught.value)
    assert contents(straight) == before


@pytest.mark.parametrize(
    ("marker", "found"),
    [
        ('{"format": 99, "jaxfuse": "9.8.7"}', "written by jaxfuse 9.8.7 (run format 99)"),
        ("{", "written by jaxfuse unknown (run format unknown)"),
        ("[]", "written by jaxfuse unknown (run format unknown)"),
    ],
)
def test_a_run_of_another_version_is_refused(tmp_path: Path, marker: str, found: str) -> None:
    (tmp_path / "run.json").write_text(marker, encoding="utf8")
    with pytest.raises(RunFolderError) as caught:
        loop.run(tiny_network.experiment(), tmp_path)
    assert f"{tmp_path}: {found}" in str(caught.value)
    assert "name another folder" in str(caught.value)
    assert contents(tmp_path) == {"run.json": marker.encode()}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x", encoding="utf8")
    with pytest.raises(RunFolderError, match="not empty and not a run of jaxfuse"):
        loop.run(tiny_network.experiment(), tmp_path)
    with pytest.raises(RunFolderError, match=r"thesis\.tex: is a file: name a folder"):
        loop.run(tiny_network.experiment(), tmp_path / "thesis.tex")
    assert contents(tmp_path) == {"thesis.tex": b"x"}


def test_a_start_that_was_killed_is_started_again(tmp_path: Path) -> None:
    experiment = tiny_network.experiment()
    (tmp_path / "config.json").write_text("{", encoding="utf8")
    (tmp_path / "run.json.tmp").write_text("{", encoding="utf8")
    assert not setup.may_continue(tmp_path, experiment)
    setup.make_folder(tmp_path, experiment)
    assert setup.may_continue(tmp_path, experiment)
    assert sorted(contents(tmp_path)) == ["config.json", "run.json"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"data__target": config.SourceConfig(kind="folders", root="absent")},
            "absent",
        ),
        (
            {"data__external__pool": 1600},
            "data.external.pool = 1600, but the external set has 36 patches",
        ),
        (
            {"data__external__alignment": "offline", "data__external__top_k": 37},
            "data.external.top_k = 37",
        ),
        ({"model__name": "tinny"}, "model.name = 'tinny': choose one of crossfuse, lite, tiny"),
        ({"train__batch_size": 12}, "train.batch_size = 12 cannot be split over 8 devices"),
        ({"data__external__keep": 4}, "data.external.keep = 4 cannot be split over 8 devices"),
        ({"data__external__pool": 12}, "data.external.pool = 12 cannot be split over 8 devices"),
        (
            {"train__strategy": "pmap", "train__accumulate": 4},
            "train.accumulate = 4: must divide the 2 examples of a step on each device",
        ),
        ({"train__devices": 9}, "train.devices = 9, but JAX sees 8"),
    ],
)
def test_what_cannot_work_leaves_no_folder(tmp_path: Path, changes: dict, complaint: str) -> None:
    with pytest.raises(config.UserError) as caught:
        loop.run(tiny_network.experiment(**changes), tmp_path / "run")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class Poisoned(Pipeline):
    """A pipeline whose batch of step 7 has one pixel that is no number."""

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        with contextlib.closing(super().batches(start_step)) as batches:
            for step, batch in enumerate(batches, start_step):
                if step == 7:
                    batch["infrared"][2, 0, 0] = np.nan
                yield batch


def test_a_loss_that_is_not_finite_stops_the_run(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = upto(straight, 6, tmp_path / "run")
    experiment = tiny_network.experiment(train__keep_last=100)
    good = {k: v for k, v in contents(folder).items() if k.startswith("checkpoints/")}
    with monkeypatch.context() as patch:
        patch.setattr(setup, "Pipeline", Poisoned)
        with pytest.raises(loop.TrainingError) as caught:
            loop.run(experiment, folder)
    message = str(caught.value)
    pipeline = setup.open_data(experiment).pipeline
    assert f"{folder}: step 7: the loss or its gradient is not finite" in message
    assert f"Batch indices {list(range(56, 64))}: " in message
    assert all(line in message for line in pipeline.describe(7, pool=True))
    assert f"Last good checkpoint: step 6 in {folder / 'checkpoints'}" in message
    assert "lower the learning rate" in message
    assert {k: v for k, v in contents(folder).items() if k.startswith("checkpoints/")} == good
    assert [r["step"] for r in records(folder)] == [2, 3, 4, 6]

    loop.run(experiment, folder)
    assert_equal_runs(folder, straight)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line(straight: Path, tmp_path: Path) -> None:
    """No file may outgrow a limit, which fails as a full disk does, with "File too large"."""
    folder = upto(straight, 4, tmp_path / "run")
    experiment = tiny_network.experiment(train__keep_last=100)
    checkpoint = folder / "checkpoints" / "4"
    good = contents(checkpoint)
    others = [folder / name for name in ("log.jsonl", "weights.safetensors", "config.json")]
    needed = max(p.stat().st_size for p in others) + 500
    limit = max(map(len, good.values())) - 1
    assert limit > needed

    process = start(folder, experiment)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    code, _, err = finish(process)
    assert code == 1, err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith(f"jaxfuse: {folder / 'checkpoints'}: cannot save a checkpoint (")
    assert "give the same command again to continue" in last
    assert contents(checkpoint) == good

    loop.run(experiment, folder)
    assert_equal_runs(folder, straight)


def test_a_damaged_checkpoint_is_passed_over(straight: Path, tmp_path: Path, capsys) -> None:
    folder = upto(straight, 9, tmp_path / "run")
    damaged = folder / "checkpoints" / "9"
    for path in damaged.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:-20])
    loop.run(tiny_network.experiment(train__keep_last=100), folder)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"{damaged}: unreadable (")
    assert said[1] == f"continuing {folder} from step 6 of {STEPS}"
    assert_equal_runs(folder, straight)
    assert saved_steps(folder) == [3, 4, 6, 9, 12]


def test_a_complete_run_is_left_alone(straight: Path, tmp_path: Path, capsys) -> None:
    folder = upto(straight, STEPS, tmp_path / "run")
    before = contents(folder)
    assert cli.main(["train", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert f"{folder}: already complete ({STEPS} steps)" in err
    assert "continuing" not in err
    assert out == f"{folder / 'weights.safetensors'}\n"
    assert contents(folder) == before


def test_validation_ranks_checkpoints(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 patches in two batches of 8, of which the second repeats four: they count once."""
    losses = {6: 3.0, 9: math.nan, 12: 4.0}

    def made(stage, mesh):
        def evaluate(state, batch):
            first = float(batch["index"][0])  # 0 or 8
            return losses[int(state.step)] + (first / 8) * 0.3

        return evaluate

    monkeypatch.setattr(loop.steps, "make_validation", made)
    folder = upto(straight, 4, tmp_path / "run")
    source = config.SourceConfig(kind="synthetic", scenes=2, height=32, width=48, seed=9)
    experiment = tiny_network.experiment(data__validation=source, train__keep_last=1)
    (folder / "config.json").write_text(config.to_json(experiment), encoding="utf8")
    loop.run(experiment, folder)
    found = {r["step"]: r["validation_loss"] for r in records(folder) if "validation_loss" in r}
    assert found == {6: pytest.approx(3.1), 9: None, 12: pytest.approx(4.1)}
    assert saved_steps(folder) == [6, 12]


@pytest.mark.parametrize("slow", [True, False])
def test_a_run_that_waits_for_data_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, slow: bool
) -> None:
    read, pace = pipeline._Stream.read, pipeline.Batches.pace

    def slowly(self, start):
        time.sleep(0.15)  # target and pool
        return read(self, start)

    if slow:
        monkeypatch.setattr(pipeline._Stream, "read", slowly)
    else:
        monkeypatch.setattr(pipeline.Batches, "pace", lambda self: (pace(self)[0], 0.0))
    loop.run(tiny_network.experiment(data__threads=1), tmp_path / "run")
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "waiting for data" in line]
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    if not slow:
        assert lines == [] and last["data_share"] == 0.0
        return
    # Once, and of scenes that are generated no files can be made shards of.
    (line,) = lines
    assert line.endswith("examples a second. Raise data.threads or data.cache_mib")
    assert last["data_share"] > 0.5
    assert 10 < last["loader_examples_per_second"] < 8 / 0.3
    assert last["examples_per_second"] < 8 / 0.25


def test_hunger_is_told_once_and_not_of_a_single_odd_line() -> None:
    def lines(*waits: float, reads: float = 100.0) -> list[bool]:
        hunger = loop._Hunger()
        return [
            hunger.is_news(
                {
                    "data_share": share,
                    "examples_per_second": 10.0,
                    "loader_examples_per_second": reads,
                }
            )
            for share in waits
        ]

    assert lines(0.9, 0.1, 0.1) == [False] * 3  # the first line: everything starts
    assert lines(0.0, 0.9, 0.0, 0.9) == [False] * 4  # reading gives ten times as much
    assert lines(0.0, 0.9, 0.9, 0.9) == [False, False, True, False]  # all the same, it waits
    assert lines(0.0, 0.9, 0.9, reads=15.0) == [False, True, False]


def test_tensorboard_continues_where_the_run_does(straight: Path, tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    folder = upto(straight, 9, tmp_path / "run")
    loop.run(tiny_network.experiment(train__tensorboard=True, train__keep_last=100), folder)
    (path,) = (folder / "tensorboard").iterdir()
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        events.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += length + 16
    scalars = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    expected = {r["step"]: r for r in records(folder) if r["step"] > 9}
    assert {step for step, _ in scalars} == set(expected) == {10, 12}
    for step, record in expected.items():
        assert scalars[step, "loss"] == pytest.approx(record["loss"], rel=1e-6)
        assert scalars[step, "grad_norm"] == pytest.approx(record["grad_norm"], rel=1e-6)
    assert [e.step for e in events if e.session_log.status == e.session_log.START] == [10]


def test_the_log_drops_what_a_kill_lost(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 3', encoding="utf8")
    log = JsonLines(path, 4)
    log.write({"step": 6, "stage": "x", "loss": 0.5, "validation_loss": math.nan})
    log.close()
    assert path.read_text(encoding="utf8").splitlines() == [
        '{"step": 2}',
        '{"step": 4}',
        '{"step": 6, "stage": "x", "loss": 0.5, "validation_loss": null}',
    ]


def test_a_log_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl", 0)
    with log._file, Path("/dev/full").open("w") as full:
        log._file = full
        with pytest.raises(LogError, match=r"log\.jsonl: cannot be written \(No space left"):
            log.write({"step": 1})
        with contextlib.suppress(OSError):
            full.close()


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


RECORD = {"step": 50, "stage": "fusion", "loss": 0.25, "steps_per_second": 2.0}


def test_plain_lines_off_a_terminal() -> None:
    stream = io.StringIO()
    terminal = Terminal(7400, 0, stream)
    terminal.say("continuing")
    terminal.write(RECORD)
    terminal.write({**RECORD, "step": 7399, "validation_loss": 0.5, "steps_per_second": 0.1})
    terminal.close()
    assert stream.getvalue().splitlines() == [
        "continuing",
        "fusion  step 50/7400  loss 0.2500  2.00 steps/s  1:01:15 left",
        "fusion  step 7399/7400  loss 0.2500  validation 0.5000  0.10 steps/s  0:10 left",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    stream = Screen()
    terminal = Terminal(100, 40, stream)
    terminal.say("continuing [bold]x[/bold] from step 40")
    terminal.advance(50, "fusion")
    terminal.write(RECORD)
    terminal.close()
    shown = stream.getvalue()
    assert "continuing [bold]x[/bold] from step 40\n" in shown
    for part in ("fusion", "50/100", "2.00 steps/s", "loss 0.2500"):
        assert part in shown


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(LogError, match=r"log\.jsonl: cannot be written .*: free disk space"):
        JsonLines(tmp_path / "log.jsonl", 0)


def _offline(folder: Path, **changes: Any) -> Any:
    source = tiny_network.experiment(data__external__alignment="offline", **changes).data
    return external.select(open_source(source.target), open_source(source.external), source, 4)


def test_a_run_keeps_its_selection(tmp_path: Path) -> None:
    """A continued run must learn from the patches it began with."""
    before = _offline(tmp_path)
    setup.keep_selection(tmp_path, before)
    setup.keep_selection(tmp_path, before)
    path = tmp_path / "selection.json"
    text = path.read_text()
    other = _offline(tmp_path, data__external__seed=3)
    inverted = dataclasses.replace(before, infrared=1 - before.infrared)
    for changed in (other, inverted):
        with pytest.raises(RunFolderError, match=r"selection\.json: Top-K now gives other"):
            setup.keep_selection(tmp_path, changed)
        assert path.read_text() == text
    for damaged in ("cut of", '{"patches": [1]}', "[]"):
        path.write_text(damaged)
        setup.keep_selection(tmp_path, before)
        assert path.read_text() == text


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    experiment = tiny_network.experiment(data__external__alignment="none")
    data = setup.open_data(experiment)
    assert setup.remarks(experiment, data) == [
        "data.external is not used: data.external.alignment is 'none'"
    ]
    selection = dataclasses.replace(_offline(tmp_path), reached=np.array([True, False, True]))
    experiment = tiny_network.experiment(data__external__alignment="offline")
    said = setup.remarks(experiment, dataclasses.replace(data, selection=selection))
    assert said[0].startswith("4 of 36 external patches join the target's, gamma ")
    assert said[1].startswith("green: no gamma moves")
    strong = dataclasses.replace(selection, gamma=np.array([2.5, 1.0, 1.0]))
    assert "gamma 2.50, 1.00, 1.00 is strong" in strong.doubts()[-1]
    missing = config.ExternalConfig(kind="folders", root="absent")
    words = r"data\.external\.root = 'absent': no such folder: set data\.external\.root .*none"
    with pytest.raises(config.ConfigError, match=words):
        setup.open_set("data.external", missing)


def test_the_best_weights_are_kept_beside_the_newest(tmp_path: Path) -> None:
    """Those of the lowest loss of the last stage, also where the run was continued."""
    folder = tmp_path / "run"
    loop.run(tiny_network.experiment(train__log_every=1, train__checkpoint_every=1), folder)
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [r for r in records if r["stage"] == records[-1]["stage"]]
    best = min(last, key=lambda r: (r["loss"], -r["step"]))
    kept = weights.load_weights(folder / "best.safetensors")
    assert kept.metadata["step"] == str(best["step"])
    assert float(kept.metadata["rank_loss"]) == best["loss"]
    assert loop._rank_of(folder / "best.safetensors") == (1.0, -best["loss"])
    assert loop._rank_of(folder / "none.safetensors") == (-math.inf, -math.inf)
