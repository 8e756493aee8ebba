"""Makes the packaged weights again: `python -m bench.pretrain crossfuse lite score --data DATA`.

Trains presets in WORK/PRESET (continuing what is there) and puts the result into jaxfuse/pretrained
with its checksum; `score` judges all that is there, `rims` how dark it gets beside what is hot;
`downstream` teaches them on by SSVIF and asks whether segmentation gains. DATA is the folder that
holds roadscene, msrs, tno and splits; training reads the training splits only.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, rivals
from bench.sides import BenchError

FORMAT = 1
PRETRAINED = machine.ROOT / "jaxfuse" / "pretrained"
SCORES = machine.ROOT / "bench" / "results" / "weights" / "scores.json"
METRICS = ("EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM")
DOWNSTREAM = SCORES.with_name("downstream.json")
RIMS = SCORES.with_name("rims.json")
SIDE, SQUARE, VISIBLE, HOT, COLD = 160, 40, 128, 230, (0, 30)
DISTANCES = (48, 24, 16, 8, 5, 4, 3, 2, 1)
"""Pixels from the square, where the level of what is dark in the infrared is read."""
PRESETS = {
    "crossfuse": ("packaged_crossfuse",),
    "crossfuse_published": ("packaged_crossfuse_published",),
    "lite": ("packaged_lite", "packaged_lite_contrast"),
    "lite_taught": ("packaged_lite_taught",),
}
"""What can be trained -> its presets, one after the other; the weights bear the network's name."""
TAUGHT: dict[str, dict[str, dict[str, Any]]] = {
    "lite": {},
    "crossfuse": {
        "method": {"stage2_epochs": 3},
        "data": {"patch_size": 64},
        "train": {"batch_size": 4},
    },
}
"""Packaged weights that SSVIF teaches on -> changes of the preset packaged_ssvif."""
KEPT_AS = {"crossfuse": "float16"}
"""What parameters are stored as, where it is not float32."""


def train(experiment: Any, data: Path, run: Path, runs: Sequence[Path] = ()) -> Path:
    """The run folder of a finished training, with the commit it began with in `commit_of`.

    Presets name their sets as seen from where data/ is, and earlier runs as seen from where runs/
    is; so do the weights, whatever DATA is. runs: those that may be begun with.
    """
    from jaxfuse.train import loop

    began = commit_of(run)
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="jaxfuse-pretrain-") as place:
        (Path(place) / "data").symlink_to(data)
        (Path(place) / "runs").mkdir()
        for earlier in runs:
            (Path(place) / "runs" / earlier.name).symlink_to(earlier)
        os.chdir(place)
        try:
            of = _digests(experiment)
            held = run.with_name(f"{run.name}.weights")
            if not began.exists():
                began.parent.mkdir(parents=True, exist_ok=True)
                began.write_text(str(machine.versions()["commit"]), encoding="utf8")
                held.write_text(of, encoding="utf8")
            elif of != (held.read_text(encoding="utf8") if held.exists() else ""):
                raise BenchError(
                    f"{run}: began with other weights than now ({held.name}): remove it, or name "
                    "another folder with --work"
                )
            outcome = loop.run(experiment, run)
        finally:
            os.chdir(before)
    if outcome.doubts:
        raise BenchError(f"{run}: {'; '.join(outcome.doubts)}")
    return run


def _digests(experiment: Any) -> str:
    """Which weights it begins with, and its teacher's."""
    from jaxfuse import weights

    names = (experiment.model.start, getattr(experiment.method, "teacher", ""))
    return "".join(f"{name} {machine.digest(weights.find(name))}\n" for name in names if name)


def commit_of(run: Path) -> Path:
    """The file beside a run folder that says which commit began it."""
    return run.with_name(f"{run.name}.commit")


def train_all(name: str, data: Path, work: Path) -> list[Path]:
    """The run folders of what `PRESETS` says, WORK/PRESET, each where it is finished."""
    from jaxfuse import experiments

    runs: list[Path] = []
    for preset in PRESETS[name]:
        runs.append(train(experiments.find(preset), data, work / preset, runs))
    return runs


def put(runs: Sequence[Path]) -> Path:
    """The weights of the last run into the package, under the network's name.

    Raises BenchError where a run began with changes that no commit holds.
    """
    from jaxfuse import weights

    commits = [commit_of(run).read_text(encoding="utf8") for run in runs]
    for run, commit in zip(runs, commits, strict=True):
        if commit.endswith("+"):
            raise BenchError(
                f"{run}: began with changes that no commit holds ({commit}): commit them and train "
                "in another folder, so that whoever asks can make the same weights"
            )
    run, commit = runs[-1], commits[-1]
    read = weights.load_weights(run)
    name = read.name
    about = {
        **read.metadata,
        "data": "the training splits of RoadScene (149 pairs) and MSRS (121 pairs)",
        "commit": commit,
        **({"began_with": f"{runs[-2].name} of commit {commits[-2]}"} if runs[1:] else {}),
        "jax": machine.versions()["jax"],
    }
    path = PRETRAINED / f"{name}.safetensors"
    weights.save_weights(path, name, read.params, about, KEPT_AS.get(name, "float32"))
    sums = [
        f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.name}\n"
        for each in sorted(PRETRAINED.glob("*.safetensors"))
    ]
    (PRETRAINED / weights.SUMS).write_text("".join(sums), encoding="utf8")
    return path


def teach(name: str, data: Path, work: Path) -> Path:
    """Packaged weights taught on by SSVIF; the run folder."""
    from jaxfuse import experiments

    preset = experiments.find("packaged_ssvif")
    model = dataclasses.replace(preset.model, name=name, start=name)
    changed = {
        part: dataclasses.replace(getattr(preset, part), **fields)
        for part, fields in TAUGHT[name].items()
    }
    return train(dataclasses.replace(preset, model=model, **changed), data, work / f"{name}_ssvif")


def downstream(
    data: Path, work: Path, steps: int, seeds: int, names: Sequence[str]
) -> dict[str, Any]:
    """What segmentation networks learn from pictures of the packaged weights and of the same taught
    on by SSVIF: on generated scenes, for nobody has true labels of the pairs in DATA.
    """
    from bench import ssvif
    from jaxfuse.evaluate import downstream as judge
    from jaxfuse.evaluate import downstream_summary
    from jaxfuse.evaluate import plan as plans
    from jaxfuse.evaluate.downstream_plan import Plan

    versions = machine.versions()
    runs = {name: teach(name, data, work) for name in names}
    sizes = ssvif.Sizes(seeds=seeds, steps=steps)
    scenes = ssvif.experiment_of({}, 0, sizes).data.target
    unseen = dataclasses.replace(
        scenes, seed=scenes.seed + ssvif.JUDGED_ON, scenes=sizes.test_scenes
    )
    rows: dict[str, Any] = {}
    for name, run in runs.items():
        methods = (
            plans.Contender(name, weights=name),
            plans.Contender(f"{name}_ssvif", weights=str(run)),
        )
        plan = Plan(scenes, unseen, methods, steps=steps, patch_size=96, seeds=seeds, frozen="none")
        found = judge.run(plan, work / "downstream", progress=ssvif.say)
        for row, cell in downstream_summary.summarise(found)["retrained"]["all"].items():
            rows[row] = {"miou": ssvif.interval(cell.mean), "miou_of_seeds": list(cell.seeds)}
            if cell.difference is not None and row in (m.name for m in methods):
                rows[row]["reference"] = name
                rows[row]["difference"] = ssvif.interval(cell.difference) | {"p": cell.p}
    return {
        "format": FORMAT,
        "command": f"python -m bench.pretrain downstream --data DATA --steps {steps} "
        f"--seeds {seeds} --taught {' '.join(names)}",
        "machine": machine.hardware(),
        "versions": versions,
        "weights": shipped(),
        "scenes": {"train": scenes.scenes, "test": unseen.scenes, "sensor": scenes.sensor},
        "segmenter": plan.segmenter,
        "steps": steps,
        "seeds": seeds,
        "rows": rows,
    }


def downstream_lines(result: dict[str, Any]) -> list[str]:
    """The table for the card."""
    table = ["| | mIoU, % | difference, points | p |", "|---" * 4 + "|"]
    for row, found in result["rows"].items():
        cells = [row, f"{100 * found['miou']['value']:.2f}", "", ""]
        if "difference" in found:
            d = found["difference"]
            cells[2] = f"{100 * d['value']:+.2f}"
            if "low" in d:
                cells[2] += f" ({100 * d['low']:+.2f} to {100 * d['high']:+.2f})"
                cells[3] = f"{d['p']:.2g}"
        table.append("| " + " | ".join(cells) + " |")
    return table


def protocol(data: Path, pictures: Path | None, also: Sequence[str] = ()) -> str:
    """What to score: all packaged weights, and others' pictures, on the validation pairs of the
    sets trained on and on one that no training saw. pictures: what `bench.rivals` wrote. also:
    NAME=WEIGHTS of further rows.
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
    for name, _, weights_file in (each.partition("=") for each in also):
        place = Path(weights_file).resolve()
        lines += ["[[methods]]", f'name = "{name}"', f'weights = "{place}"']
    if pictures is not None:
        for each in sorted((pictures / rivals.SETS[0]).iterdir()):
            lines += ["[[methods]]", f'name = "{each.name}"']
            lines += [f'fused = "{pictures / "{dataset}" / each.name}"']
    return "\n".join(lines) + "\n"


def shipped() -> dict[str, str]:
    """Each file in the package -> its SHA-256."""
    from jaxfuse import weights

    lines = (PRETRAINED / weights.SUMS).read_text(encoding="utf8").splitlines()
    return {file: digest for digest, file in (line.split() for line in lines)}


def origins(also: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """NAME=WEIGHTS of further rows: which experiment, step and commit they are of."""
    from jaxfuse import weights

    found = {}
    for name, _, place in (each.partition("=") for each in also):
        metadata = weights.load_weights(place).metadata
        of = {key: metadata.get(key) for key in ("experiment", "step", "commit")}
        began = commit_of(Path(place).resolve())
        if began.exists():
            of["commit"] = began.read_text(encoding="utf8")
        found[name] = of
    return found


def command_of(what: str, also: Sequence[str]) -> str:
    """What was asked for, without this machine's paths."""
    rows = [f"{each.partition('=')[0]}=WEIGHTS" for each in also]
    return " ".join(["python -m bench.pretrain", what, *(["--also", *rows] if rows else [])])


def score(
    data: Path, work: Path, pictures: Path | None, also: Sequence[str] = ()
) -> dict[str, Any]:
    """Means with intervals of every set, row and metric; see `protocol`."""
    from jaxfuse import cli, weights

    versions = machine.versions()
    made_by: dict[str, Any] = {}
    if pictures is not None:
        made_by = rivals.made_by(pictures)
        named = {each.name for each in (pictures / rivals.SETS[0]).iterdir()}
        if unknown := sorted(named.symmetric_difference(made_by)):
            raise BenchError(
                f"--pictures {pictures}: {rivals.FACTS} and the folders of pictures differ in "
                f"{', '.join(unknown)}: make them again with python -m bench.rivals"
            )
    work.mkdir(parents=True, exist_ok=True)
    asked = work / "protocol.toml"
    asked.write_text(protocol(data, pictures, also), encoding="utf8")
    words = ["evaluate", "--protocol", str(asked), "--out", str(work / "scores"), "--overwrite"]
    if cli.main(words):
        raise BenchError("the pictures could not be scored: see above")
    summary = json.loads((work / "scores" / "summary.json").read_text(encoding="utf8"))
    return {
        "format": FORMAT,
        "command": command_of("score --data DATA --pictures PICTURES", also),
        "versions": versions,
        "convention": "zoo",
        "metrics": list(METRICS),
        "commits": {
            name: weights.load_weights(name).metadata.get("commit") for name in weights.packaged()
        },
        "weights": shipped(),
        "also": origins(also),
        "rivals": made_by,
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


def with_rows_of_others(result: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The result and, for what was scored without anybody's pictures, the rows of published
    networks from the one before: they change with the metrics and pairs only.
    """
    same = all(result[key] == before.get(key) for key in ("convention", "metrics", "pairs"))
    if not same:
        return result
    carried: set[str] = set()
    for which, rows in result["scores"].items():
        for row, cells in before["scores"][which].items():
            if row in rivals.RIVALS and row not in rows:
                rows[row] = cells
                carried.add(row)
                if row in before.get("rivals", {}):
                    result["rivals"][row] = before["rivals"][row]
    if carried:
        result["carried"] = {row: before["versions"]["commit"] for row in sorted(carried)}
    return result


def rims(names: Sequence[str], also: Sequence[str] = ()) -> dict[str, Any]:
    """How dark a fused picture is beside something hot: a square of 230 in an infrared image of 0
    or 30, on a visible image of 128. also: NAME=WEIGHTS of further rows.
    """
    from jaxfuse.infer import predict

    first = (SIDE - SQUARE) // 2
    found: dict[str, Any] = {}
    visible = np.full((SIDE, SIDE), VISIBLE, np.uint8)
    for name, _, place in (each.partition("=") for each in (*names, *also)):
        fuser = predict.load(place or name)
        for cold in COLD:
            infrared = np.full((SIDE, SIDE), cold, np.uint8)
            infrared[first:-first, first:-first] = HOT
            row = fuser(visible, infrared)[SIDE // 2]
            found.setdefault(name, {})[str(cold)] = {
                str(far): int(row[first - far]) for far in DISTANCES
            }
    return {
        "format": FORMAT,
        "command": command_of("rims --data DATA", also),
        "versions": machine.versions(),
        "weights": shipped(),
        "also": origins(also),
        "visible": VISIBLE,
        "square": {"side": SQUARE, "level": HOT},
        "levels": found,
    }


def rim_lines(result: dict[str, Any]) -> list[str]:
    """The table for the card."""
    table = ["| | infrared around | " + " | ".join(f"{far} px" for far in DISTANCES) + " |"]
    table.append("|---" * (len(DISTANCES) + 2) + "|")
    for name, of in result["levels"].items():
        for cold, levels in of.items():
            told = " | ".join(str(levels[str(far)]) for far in DISTANCES)
            table.append(f"| {name} | {cold} | {told} |")
    return table


def metrics_won(result: dict[str, Any], sets: Sequence[str], a: str, b: str) -> list[str]:
    """The metrics whose mean over all pairs of these sets is higher for row `a` than for `b`."""

    def mean(row: str, metric: str) -> float:
        of = [(result["pairs"][s], result["scores"][s][row][metric][0]) for s in sets]
        return sum(pairs * value for pairs, value in of) / sum(pairs for pairs, _ in of)

    return [metric for metric in result["metrics"] if mean(a, metric) > mean(b, metric)]


def lines(result: dict[str, Any]) -> list[str]:
    """The tables for the cards."""
    text = ["| file | trained by commit | SHA-256 |", "|---|---|---|"]
    text += [
        f"| {file} | {result['commits'][file.removesuffix('.safetensors')]} | {digest} |"
        for file, digest in result["weights"].items()
    ]
    text.append("")
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


def keep(result: dict[str, Any], path: Path, told: Sequence[str]) -> None:
    """Writes a result and prints its table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print("\n".join([*told, str(path)]))


def main(words: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m bench.pretrain", description=__doc__)
    parse.add_argument("names", nargs="+", choices=[*PRESETS, "score", "rims", "downstream"])
    parse.add_argument(
        "--data", type=Path, required=True, help="folder of roadscene, msrs, tno, splits"
    )
    parse.add_argument(
        "--work", type=Path, default=Path("runs"), help="where runs lie (default: runs)"
    )
    parse.add_argument("--pictures", type=Path, help="what bench.rivals wrote, to score beside")
    parse.add_argument(
        "--also", nargs="+", default=[], metavar="NAME=WEIGHTS", help="score, rims: further rows"
    )
    parse.add_argument(
        "--steps",
        type=int,
        default=1000,
        help="downstream: of each segmentation network (default: 1000)",
    )
    parse.add_argument(
        "--taught", nargs="+", choices=list(TAUGHT), default=list(TAUGHT), help="downstream: which"
    )
    parse.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="downstream: segmentation networks of each row (default: 3)",
    )
    given = parse.parse_args(words)
    from jaxfuse import weights
    from jaxfuse.config import UserError

    data, work = given.data.resolve(), given.work.resolve()
    try:
        if not (data / "splits").is_dir():
            raise BenchError(
                f"--data {data}: has no folder splits: name the one that holds roadscene, msrs, "
                "tno and splits"
            )
        for name in given.names:
            if name in PRESETS:
                print(put(train_all(name, data, work)))
        if "score" in given.names:
            pictures = given.pictures and given.pictures.resolve()
            result = score(data, work / "scores", pictures, given.also)
            if pictures is None and SCORES.exists():
                before = json.loads(SCORES.read_text(encoding="utf8"))
                result = with_rows_of_others(result, before)
            keep(result, SCORES, lines(result))
        if "rims" in given.names:
            result = rims(weights.packaged(), given.also)
            keep(result, RIMS, rim_lines(result))
        if "downstream" in given.names:
            result = downstream(data, work, given.steps, given.seeds, given.taught)
            keep(result, DOWNSTREAM, downstream_lines(result))
    except (BenchError, UserError) as error:
        print(f"bench.pretrain: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
