"""Makes the packaged weights again: `python -m bench.pretrain crossfuse lite score --data DATA`.

Trains the preset packaged_NAME in WORK/NAME (continuing what is there) and puts the result into
jaxfuse/pretrained with its checksum; `score` judges all that is there. DATA is the folder that
holds roadscene, msrs, tno and splits; training reads the training splits only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine, rivals
from bench.sides import BenchError

FORMAT = 1
PRETRAINED = machine.ROOT / "jaxfuse" / "pretrained"
SCORES = machine.ROOT / "bench" / "results" / "weights" / "scores.json"
METRICS = ("EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM")
KEPT_AS = {"crossfuse": "float16"}
"""What parameters are stored as, where it is not float32."""


def train(name: str, data: Path, work: Path) -> Path:
    """The run folder of a finished training. Presets name their sets as seen from DATA/.. ."""
    from jaxfuse import experiments
    from jaxfuse.train import loop

    before = Path.cwd()
    os.chdir(data.parent)
    try:
        outcome = loop.run(experiments.find(f"packaged_{name}"), work / name)
    finally:
        os.chdir(before)
    if outcome.doubts:
        raise BenchError(f"{work / name}: {'; '.join(outcome.doubts)}")
    return work / name


def put(name: str, run: Path) -> None:
    """The weights of a run into the package."""
    from jaxfuse import weights

    read = weights.load_weights(run)
    versions = machine.versions()
    about = {
        **read.metadata,
        "data": "the training splits of RoadScene (149 pairs) and MSRS (121 pairs)",
        "commit": versions["commit"],
        "jax": versions["jax"],
    }
    path = PRETRAINED / f"{name}.safetensors"
    weights.save_weights(path, read.name, read.params, about, KEPT_AS.get(name, "float32"))
    sums = [
        f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.name}\n"
        for each in sorted(PRETRAINED.glob("*.safetensors"))
    ]
    (PRETRAINED / weights.SUMS).write_text("".join(sums), encoding="utf8")


def protocol(data: Path, pictures: Path | None) -> str:
    """What to score: all packaged weights, and others' pictures, on the validation pairs of the
    sets trained on and on one that no training saw. pictures: what `bench.rivals` wrote.
    """
    from jaxfuse import weights

    lines = ['convention = "zoo"', f"metrics = {json.dumps(METRICS)}"]
    for which in rivals.SETS:
        split = data / "splits" / f"{which}.txt"
        lines += ["[[datasets]]", f'name = "{which}"', f'root = "{data / which.split("_")[0]}"']
        lines += [f'role = "{"in" if split.exists() else "out"}"']
        lines += [f'split = "{split}"'] * split.exists()
    for name in weights.packaged():
        lines += ["[[methods]]", f'name = "{name}"', f'weights = "{name}"']
    if pictures is not None:
        for each in sorted((pictures / rivals.SETS[0]).iterdir()):
            lines += ["[[methods]]", f'name = "{each.name}"']
            lines += [f'fused = "{pictures / "{dataset}" / each.name}"']
    return "\n".join(lines) + "\n"


def score(data: Path, work: Path, pictures: Path | None) -> dict[str, Any]:
    """Means with intervals of every set, row and metric; see `protocol`."""
    from jaxfuse import cli, weights

    versions = machine.versions()
    work.mkdir(parents=True, exist_ok=True)
    asked = work / "protocol.toml"
    asked.write_text(protocol(data, pictures), encoding="utf8")
    words = ["evaluate", "--protocol", str(asked), "--out", str(work / "scores"), "--overwrite"]
    if cli.main(words):
        raise BenchError("the pictures could not be scored: see above")
    summary = json.loads((work / "scores" / "summary.json").read_text(encoding="utf8"))
    sums = (PRETRAINED / weights.SUMS).read_text(encoding="utf8").splitlines()
    return {
        "format": FORMAT,
        "command": "python -m bench.pretrain score --data DATA --pictures PICTURES",
        "versions": versions,
        "convention": "zoo",
        "metrics": list(METRICS),
        "weights": dict(reversed(line.split()) for line in sums),  # type: ignore[misc]
        "pairs": {
            name: next(iter(next(iter(of["cells"].values())).values()))["count"]
            for name, of in summary["datasets"].items()
        },
        "scores": {
            name: {
                row: {
                    metric: [round(cell[key], 5) for key in ("mean", "low", "high")]
                    for metric, cell in cells.items()
                    if cell["mean"] is not None and cell["count"]
                }
                for row, cells in of["cells"].items()
            }
            for name, of in summary["datasets"].items()
        },
    }


def better(result: dict[str, Any], which: str, a: str, b: str) -> int:
    """On how many metrics the mean of row `a` is higher than that of row `b`."""
    rows = result["scores"][which]
    return sum(rows[a][metric][0] > rows[b][metric][0] for metric in result["metrics"])


def lines(result: dict[str, Any]) -> list[str]:
    """The tables for the cards."""
    text = []
    for which, rows in result["scores"].items():
        text += [f"{which}, {result['pairs'][which]} pairs:", ""]
        text += ["| | " + " | ".join(result["metrics"]) + " |"]
        text += ["|---" * (len(result["metrics"]) + 1) + "|"]
        for row, cells in rows.items():
            told = [
                f"{cells[m][0]:.3g} ({cells[m][1]:.3g} to {cells[m][2]:.3g})" if m in cells else "-"
                for m in result["metrics"]
            ]
            text.append(f"| {row} | " + " | ".join(told) + " |")
        text.append("")
    return text[:-1]


def main(words: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m bench.pretrain", description=__doc__)
    parse.add_argument("names", nargs="+", choices=["crossfuse", "lite", "score"])
    parse.add_argument("--data", type=Path, required=True, help="../shared/data of a checkout")
    parse.add_argument("--work", type=Path, default=Path("runs"), help="where runs lie")
    parse.add_argument("--pictures", type=Path, help="what bench.rivals wrote, to score beside")
    given = parse.parse_args(words)
    data, work = given.data.resolve(), given.work.resolve()
    try:
        for name in given.names:
            if name != "score":
                put(name, train(name, data, work))
                print(PRETRAINED / f"{name}.safetensors")
        if "score" in given.names:
            result = score(data, work / "scores", given.pictures and given.pictures.resolve())
            SCORES.parent.mkdir(parents=True, exist_ok=True)
            SCORES.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
            print("\n".join([*lines(result), str(SCORES)]))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
