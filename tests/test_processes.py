"""Runs of several processes over loopback: what dies, who says so, and that nothing is lost."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import two_processes
from bench import faults
from jaxfuse import config, distributed
from jaxfuse.config import ConfigError, SourceConfig
from jaxfuse.train import loop, setup
from jaxfuse.train.setup import RunFolderError
from run_folders import records

LOCAL = [sys.executable, str(Path(__file__).resolve().parents[1] / "launch" / "local.py")]
REPO = Path(__file__).resolve().parents[1]

PLACE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("", "2", "0"), "JAX_NUM_PROCESSES, JAX_PROCESS_ID set, but not JAX_COORDINATOR_ADDRESS"),
        (("host:1", "", "0"), "set, but not JAX_NUM_PROCESSES"),
        (("host:1", "2", ""), "set, but not JAX_PROCESS_ID: set all three, or none"),
        (("host:1", "two", "0"), "JAX_NUM_PROCESSES = 'two': use a whole number"),
        (("host:1", "2", "-1"), "JAX_PROCESS_ID = '-1': use a whole number"),
        (("host:1", "2", "2"), r"JAX_PROCESS_ID = 2: must lie in 0\.\.1"),
        (("host", "2", "1"), "JAX_COORDINATOR_ADDRESS = 'host': use host:port"),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], complaint: str
) -> None:
    for name, value in zip(PLACE, given, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=complaint):
        distributed.start()


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "soon"])
def test_a_heartbeat_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JAXFUSE_HEARTBEAT_SECONDS", value)
    with pytest.raises(ConfigError, match=f"JAXFUSE_HEARTBEAT_SECONDS = '{value}': use whole sec"):
        distributed.start()


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    with distributed.joined():
        assert distributed.is_chief()
        assert distributed.all_agree(True) and not distributed.all_agree(False)
        assert not distributed.must_stop(3)
        distributed.together("nobody else")


KILLS = 5


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs")
    faults.undisturbed(folder / "straight")
    return folder


@pytest.fixture(scope="module")
def chain_of_all(work: Path) -> Iterator[faults.Chain]:
    with faults.Chain(work) as chain:
        yield chain


@pytest.fixture
def chain(chain_of_all: faults.Chain, request: pytest.FixtureRequest) -> Iterator[faults.Chain]:
    """The run that all faults come to; a new one after a test that has failed."""
    before = request.session.testsfailed
    yield chain_of_all
    if request.session.testsfailed > before:
        chain_of_all.abandon()


GONE = {-9, *faults.ENDS}
EXPECTED = {
    "term_1": ({75}, "stopped on request, step"),
    "term_0": ({75}, "stopped on request, step"),
    "kill_1": (GONE, ""),
    "kill_0": (GONE, ""),
    "kill_in_save": ({-9}, ""),
    "truncated": ({75}, "stopped on request"),
    "full_disk": ({1, *faults.ENDS}, "free disk space"),
    "read_only": ({1, *faults.ENDS}, "ermission denied"),
    "full_in_save_0": ({1, *faults.ENDS}, "process 0 of 2: "),
    "full_in_save_1": ({1, *faults.ENDS}, "process 1 of 2: "),
}
"""Exit codes that may be seen, and what is said."""


@pytest.mark.slow
@pytest.mark.parametrize("name", faults.FAULTS)
def test_nothing_is_lost(work: Path, chain: faults.Chain, name: str) -> None:
    """What was lost is done again, and the log as if nothing had been; how it ends, see below."""
    _, fault, between = faults.FAULTS[name]
    row = chain.broken(fault, between)
    codes, said = EXPECTED[name]
    assert set(row.codes) <= codes, row.said
    assert said in row.said
    # Survivors end within the heartbeat time; twice where an error may come of another's end. The
    # rest is for a busy machine.
    waits = 1 if name.startswith("kill") else 2
    assert row.seconds_to_end < waits * faults.HEARTBEAT + 15
    assert row.at_step > 0 and faults.same_so_far(row.folder, work / "straight")
    if name == "truncated":
        assert "unreadable" in row.said_again
    if name == "kill_in_save":
        whole = row.at_step // faults.EVERY * faults.EVERY - faults.EVERY
        assert whole > 0 and f"from step {whole} of" in row.said_again
    if name == "kill_1":  # JAX may see it first
        assert "process 1 of 2 is gone" in row.said or "/task:1" in row.said
    if name == "kill_0":
        assert "leader" in row.said or "process 0 of 2 is gone" in row.said
    if name.startswith("full_in_save"):
        assert "cannot save a checkpoint" in row.said and 1 in row.codes


@pytest.mark.slow
def test_many_kills_and_all_else_change_nothing(work: Path, chain: faults.Chain) -> None:
    """A quarter as many as `python -m bench.faults` does, for the time of CI; then the end of what
    all of the above has happened to.
    """
    at = chain.many_kills(KILLS)
    assert len(at) == KILLS and len(set(at)) > KILLS // 2
    chain.end()
    assert chain.ended
    for folder in chain.ended:
        assert faults.same(folder, work / "straight")
        assert not list((folder / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
def test_other_numbers_of_processes_continue_with_the_same_examples(
    work: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "moved"
    for step, count, devices in ((9, 2, 1), (18, 1, 4), (27, 4, 1)):
        with faults.Run(folder, count, devices, heartbeat=faults.PATIENCE) as run:
            run.until_step(step)
            run.kill(count - 1, signal.SIGTERM)
            assert run.codes() == [75] * count
    found, expected = faults.losses(folder), faults.losses(work / "straight")
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    assert len(found) >= 27
    # Other examples would show in every loss; sums in another order show in the sixth digit.
    for (step, ours), (_, theirs) in zip(found, expected, strict=False):
        assert ours == pytest.approx(theirs, rel=1e-3), step


@pytest.mark.slow
def test_pmap_and_validation_of_two_local_processes_are_those_of_one(tmp_path: Path) -> None:
    usual = faults.experiment()
    validation = SourceConfig(kind="synthetic", scenes=3, height=32, width=64, seed=9)
    what = dataclasses.replace(
        usual,
        method=dataclasses.replace(usual.method, stage1_epochs=1.0),
        data=dataclasses.replace(usual.data, validation=validation),
        train=dataclasses.replace(usual.train, strategy="pmap"),
    )
    two_devices = dataclasses.replace(what, train=dataclasses.replace(what.train, devices=2))
    loop.run(two_devices, tmp_path / "one")
    found = [records(tmp_path / "one")]
    (tmp_path / "what.json").write_text(config.to_json(what), encoding="utf8")
    words = ["train", str(tmp_path / "what.json"), "--run", str(tmp_path / "two")]
    given = {name: value for name, value in os.environ.items() if name not in PLACE}
    done = subprocess.run(
        [*LOCAL, "-n", "2", "--", sys.executable, "-m", "jaxfuse", *words],
        env={**given, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(REPO)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=faults.PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 10/10" in done.stdout + done.stderr
    found.append(records(tmp_path / "two"))
    assert len(found[0]) == 10 and "validation_loss" in found[0][-1]
    for one, two in zip(*found, strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - {"stage"}:
            assert two[key] == pytest.approx(one[key], rel=1e-4), key


def two(script: str, word: str, place: Callable[[int], dict[str, str]]) -> list[tuple[int, str]]:
    """(exit code, what was printed) of two processes of a script of the tests. place: the variables
    by which process 0 or 1 finds the other.
    """
    started = []
    for number in range(2):
        given = {name: value for name, value in os.environ.items() if name not in PLACE}
        given |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAXFUSE_HEARTBEAT_SECONDS": "8",
        }
        given["PYTHONPATH"] = os.pathsep.join((str(REPO), os.environ.get("PYTHONPATH", "")))
        started.append(
            subprocess.Popen(
                [sys.executable, str(REPO / "tests" / script), word],
                env={**given, **place(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=180)[0] for process in started]
    return [(process.returncode, each) for process, each in zip(started, said, strict=True)]


def by_variables() -> Callable[[int], dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return lambda number: dict(zip(PLACE, (address, "2", str(number)), strict=True))


def by_slurm(number: int) -> dict[str, str]:
    """As srun sets them; JAX takes the coordinator's port from the number of the job."""
    job = str(os.getpid())
    common = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    mine = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
    return {**common, "SLURM_STEP_NUM_TASKS": "2", **mine}


@pytest.mark.slow
def test_what_two_processes_do_together(tmp_path: Path) -> None:
    ends = two("two_processes.py", str(tmp_path), by_slurm)
    said = [each for _, each in ends]
    assert [code for code, _ in ends] == [0, 0], "\n".join(said)
    for check in two_processes.CHECKS:
        assert all(f"{check.__name__}: well" in each for each in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "codes", "process", "words"),
    [
        # Both were asked: whoever has more to finish is waited for.
        ("late", ({75}, {75}), 0, "runs/a: stopped on request"),
        ("interrupted", (GONE, {1}), 1, "process 1 of 2: interrupted"),
        ("unwritable", ({1}, GONE), 0, "process 0 of 2: /proc/nothing: "),
    ],
)
def test_how_one_ends(how: str, codes: tuple[set[int], set[int]], process: int, words: str) -> None:
    ends = two("endings.py", how, by_variables())
    for (code, said), expected in zip(ends, codes, strict=True):
        assert code in expected, said
    said = ends[process][1]
    assert words in said
    assert "Traceback" not in said and "is another process gone?" not in said


@pytest.mark.slow
def test_who_finds_nobody_says_so(tmp_path: Path) -> None:
    given = {**os.environ, "JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2"}
    given |= {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAXFUSE_JOIN_SECONDS": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "jaxfuse", "train", "ssvif_small", "--run", str(tmp_path / "run")],
        env=given,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == distributed.PEER_GONE
    assert "127.0.0.1:1: could not join the other processes within 3 s" in done.stderr
    assert "JAXFUSE_JOIN_SECONDS" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_launchers_that_cannot_be_joined_are_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for each in PLACE:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError, match=f"{name} = 2: several processes, but JAX cannot join"):
        distributed.start()


def test_pods_that_cannot_join_do_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in PLACE:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(ConfigError, match=r"JOB_COMPLETION_INDEX is set.*pip install kubernetes"):
        distributed.start()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")  # the remedy for one alone
    distributed.start()
    assert distributed.is_chief()


def test_arguments_come_before_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    for name, value in zip(PLACE, ("host:1", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    distributed.start("other:2", process=1)
    (given,) = asked
    assert given["coordinator_address"] == "other:2"
    assert (given["num_processes"], given["process_id"]) == (4, 1)
    with pytest.raises(ConfigError, match=r"JAX_PROCESS_ID = 4: must lie in 0\.\.3"):
        distributed.start(process=4)


def test_processes_must_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = faults.experiment()
    data = setup.open_data(experiment)

    def others(change: list[int]) -> None:
        monkeypatch.setattr(
            distributed, "of_all_processes", lambda mine: np.stack([mine, mine + np.uint32(change)])
        )

    others([0, 0, 0])
    setup.check_alike(experiment, data, 60)
    others([1, 5, 0])
    with pytest.raises(RunFolderError, match="process 1 of 2 has another config than process 0"):
        setup.check_alike(experiment, data, 60)
    others([0, 5, 3])
    items = data.pipeline.items_per_epoch
    said = f"{items + 5} patches an epoch and 63 steps, process 0 {items} and 60: give all of them"
    with pytest.raises(RunFolderError, match=said):
        setup.check_alike(experiment, data, 60)
