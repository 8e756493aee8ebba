"""The demo, whole, with few steps: what `make demo` runs."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxfuse import config, demo


@pytest.mark.slow
def test_the_demo_trains_selects_aligns_and_fuses(fresh_python, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ["-m", "jaxfuse", "demo", "--out", str(out), "--steps", "2"]
    result = fresh_python(*arguments, timeout=900, env={"XLA_FLAGS": ""})
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in out.iterdir()) == sorted(demo.MADE)
    assert all(str(out / name) in result.stdout for name in demo.MADE)
    assert "64 of 768 kept" in result.stdout

    experiment = config.load_json(out / "run" / "config.json")
    assert (experiment.name, experiment.train.steps_per_epoch) == ("demo", 2)
    steps = 2 * round(experiment.method.stage1_epochs + experiment.method.stage2_epochs)
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

    again = fresh_python(*arguments, timeout=900, env={"XLA_FLAGS": ""})
    assert again.returncode == 0, again.stderr
    assert f"already complete ({steps} steps)" in again.stderr
    assert [
        json.loads(x)["step"] for x in (out / "run" / "log.jsonl").read_text().splitlines()
    ] == [r["step"] for r in log]
