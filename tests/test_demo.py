"""The demo, whole, with few steps: what `make demo` runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxfuse import config, demo

AS_USERS = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
"""One device, and programs that XLA has optimized."""


def killed_in_training(arguments: list[str], run: Path, repo: Path) -> None:
    """Gives the command, and kills it when it has saved something."""
    environment = {**os.environ, **AS_USERS, "PYTHONPATH": str(repo)}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 600
            while not (run / "checkpoints" / "1").is_dir():
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
        finally:
            process.kill()


@pytest.mark.slow
def test_the_demo_trains_selects_aligns_and_fuses(fresh_python, tmp_path: Path, repo: Path) -> None:
    """It is killed once: the same command again continues it."""
    out = tmp_path / "demo"
    arguments = ["-m", "jaxfuse", "demo", "--out", str(out), "--steps", "1"]
    killed_in_training(arguments, out / "run", repo)
    # As an earlier demo that came to its end would have left them.
    (out / "pictures").mkdir()
    (out / "fused.png").touch()
    result = fresh_python(*arguments, timeout=900, env=AS_USERS)
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in out.iterdir()) == sorted(demo.MADE)
    assert all(str(out / name) in result.stdout for name in demo.MADE)
    assert "64 of 768 kept" in result.stdout

    experiment = config.load_json(out / "run" / "config.json")
    assert (experiment.name, experiment.train.steps_per_epoch) == ("demo", 1)
    steps = round(experiment.method.stage1_epochs + experiment.method.stage2_epochs)
    assert f"continuing {out / 'run'} from step 1 of {steps}" in result.stderr
    log = [json.loads(line) for line in (out / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == steps
    assert {r["stage"] for r in log} == {"reconstruction", "fusion"}

    fused = sorted((out / "pictures").glob("*_fused.png"))
    assert [p.name.split("_")[1] for p in fused].count("clear") == 2 and len(fused) == 4
    for path in fused:
        image = cv2.imread(str(path))
        visible = cv2.imread(str(path).replace("fused", "visible"))
        infrared = cv2.imread(str(path).replace("fused", "infrared"), cv2.IMREAD_UNCHANGED)
        assert image.shape == visible.shape == (240, 320, 3)
        assert infrared.shape == (240, 320)
        assert image.std() > 5 and not np.array_equal(image, visible)
