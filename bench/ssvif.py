"""What SSVIF changes, on generated scenes with true labels: `python -m bench.ssvif`.

Fusion networks are trained without guidance (lower bound), by SSVIF and with labels (upper bound),
once a seed; segmentation networks learn from what each of them fuses, and are judged on scenes that
none has seen. `--settings` tries other settings of SSVIF instead, one after the other. Everything
is done by the functions behind `jaxfuse train` and `jaxfuse evaluate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from jaxfuse import distributed, experiments
from jaxfuse.config import Experiment, SourceConfig, UserError, to_dict
from jaxfuse.data import images
from jaxfuse.data.sources import open_source
from jaxfuse.data.synthetic import CLASSES
from jaxfuse.evaluate import downstream, downstream_summary, score
from jaxfuse.evaluate import plan as plans
from jaxfuse.evaluate.downstream_plan import Plan
from jaxfuse.infer import predict
from jaxfuse.metrics import semantic
from jaxfuse.train import loop

FORMAT = 1
PRESET = "ssvif_small"
METRICS = ("SSIM", "Qabf", "MI")
CONVENTION = "zoo"
SIGNS = ("classes_in_use", "classes_told_apart", "confidence", "agreement")
"""What is kept of the logs."""

TEACHER_PRESET = "segmentation_small"
TEACHER = "TEACHER"
"""Stands for the weights of a run of that preset: see `teacher`."""
_TAUGHT: dict[str, Any] = {
    "anchor": "pretrained",
    "segmenter_weights": TEACHER,
    "classes": len(CLASSES),
    # The teacher stands still, and a new network learns from it what the fused image shows.
    "segmenter_start": "fresh",
    # It knows small things from what is around them: every cell counts.
    "region": 1,
    "guidance_weight": 1.5,
}

BOUNDS: dict[str, dict[str, Any]] = {
    "fusion_only": {"guidance": "none"},
    "ssvif": {},
    "ssvif_taught": _TAUGHT,
    "supervised": {"guidance": "labels", "classes": len(CLASSES)},
}
"""What is compared: changes of the preset's method. The first row is what others differ from."""
COLLAPSED, NO_ANCHOR = "no_anchor", {"anchor": "none"}
"""Trained beside them with the first seed, for its curves."""
SETTINGS: dict[str, dict[str, Any]] = {
    "fusion_only": {"guidance": "none"},
    "taught": _TAUGHT,
    "kl": {**_TAUGHT, "loss": "kl"},
    "cosine": {**_TAUGHT, "loss": "cosine"},
    "all_pixels_alike": {**_TAUGHT, "confidence": False},
    "squares_of_4": {**_TAUGHT, "region": 4},
    "dwa": {**_TAUGHT, "weighting": "dwa"},
    "gradnorm": {**_TAUGHT, "weighting": "gradnorm", "guidance_weight": 0.5},
    "fixed": {**_TAUGHT, "weighting": "fixed"},
}
"""What is tried: changes of the preset's method."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    seeds: int = 3
    test_scenes: int = 256
    """Unseen ones, of other seeds: some to try settings on, others to judge what is compared."""
    steps: int = 1000
    """Of each segmentation network."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Of the preset's `train` and `data.target`, by dotted name: for a trial."""


TRIED_ON, JUDGED_ON = 1000, 2000
"""Offsets of the seed of unseen scenes: those that settings are chosen by, and the others."""


TINY = Sizes(
    seeds=1,
    test_scenes=3,
    steps=2,
    changes=(
        ("train.steps_per_epoch", 1),
        ("train.batch_size", 2),
        ("train.devices", 1),
        ("target.scenes", 4),
    ),
)


def experiment_of(changes: Mapping[str, Any], seed: int, sizes: Sizes) -> Experiment:
    """The preset with other settings of the method."""
    preset = experiments.find(PRESET)
    data, train = preset.data, preset.train
    for name, value in sizes.changes:
        part, field = name.split(".")
        if part == "train":
            train = dataclasses.replace(train, **{field: value})
        else:
            target = dataclasses.replace(data.target, **{field: value})
            data = dataclasses.replace(data, target=target)
    method = dataclasses.replace(preset.method, **changes)
    return dataclasses.replace(preset, seed=seed, method=method, data=data, train=train)


def teacher(work: Path, sizes: Sizes) -> str:
    """Trains the network that teaches, unless it is there; returns its run folder.

    It learns from labels of other scenes, seen by sensors drawn at random and fused by the first
    row's network of seed 0.
    """
    preset = experiments.find(TEACHER_PRESET)
    given = {name.split(".")[1]: x for name, x in sizes.changes if name.startswith("train.")}
    scenes = {name.split(".")[1]: x for name, x in sizes.changes if name.startswith("target.")}
    pairs = open_source(dataclasses.replace(preset.data.target, **scenes))
    folder = work / "taught"
    if not (folder / "labels" / f"{pairs.stem(len(pairs) - 1)}.png").exists():
        fuser = predict.load(work / "runs" / f"{next(iter(BOUNDS))}-0")
        for kind in ("vi", "ir", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(len(pairs)):
            pair, name = pairs[i], f"{pairs.stem(i)}.png"
            images.write(folder / "vi" / name, fuser(pair.visible, pair.infrared))
            images.write(folder / "ir" / name, pair.infrared)
            images.write(folder / "labels" / name, pair.labels.astype(np.float32) / np.float32(255))
    data = dataclasses.replace(preset.data, target=SourceConfig("folders", root=str(folder)))
    train = dataclasses.replace(preset.train, **given)
    loop.run(dataclasses.replace(preset, data=data, train=train), work / "runs" / "teacher")
    return str(work / "runs" / "teacher")


def train(
    variants: Mapping[str, Mapping[str, Any]], work: Path, sizes: Sizes
) -> dict[str, list[list[str]]]:
    """Trains everything that is not trained yet; returns each run's doubts."""
    doubts: dict[str, list[list[str]]] = {name: [] for name in variants}
    for seed in range(sizes.seeds):
        for name, changes in variants.items():
            print(f"training {name}, seed {seed}", file=sys.stderr, flush=True)
            method = {
                key: teacher(work, sizes) if x == TEACHER else x for key, x in changes.items()
            }
            folder = work / "runs" / f"{name}-{seed}"
            outcome = loop.run(experiment_of(method, seed, sizes), folder)
            doubts[name].append(list(outcome.doubts))
    return doubts


def judged(
    names: Sequence[str], work: Path, sizes: Sizes, offset: int
) -> tuple[Plan, downstream.Judged]:
    """Segmentation networks retrained on what each fusion network makes.

    offset: of the seed of the scenes that they are judged on.
    """
    target = experiment_of({}, 0, sizes).data.target
    test = dataclasses.replace(target, seed=target.seed + offset, scenes=sizes.test_scenes)
    methods = tuple(
        plans.Contender(name, weights=str(work / "runs" / f"{name}-{{seed}}")) for name in names
    )
    plan = Plan(
        target,
        test,
        methods,
        steps=sizes.steps,
        patch_size=96,
        batch_size=8 if sizes.steps > 10 else 2,
        seeds=sizes.seeds,
        frozen="none",
        devices=dict(sizes.changes).get("train.devices", 0),
    )
    return plan, downstream.run(plan, work / "downstream", progress=say)


def say(what: str) -> Any:
    """Tells what is being done; the progress of `downstream.run`."""
    print(what, file=sys.stderr, flush=True)
    return lambda done, total, name: None


def quality(names: Sequence[str], work: Path, sizes: Sizes) -> dict[str, dict[str, np.ndarray]]:
    """name -> metric -> (seeds, images), of the test pictures that the networks fused."""
    folder = work / "downstream"
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for seed in range(sizes.seeds):
        fused = tuple(
            plans.Contender(n, fused=str(folder / "pictures" / n / f"seed{seed}" / "test"))
            for n in names
        )
        data = plans.Dataset("test", root=str(folder / "set" / "test"))
        plan = plans.Plan((data,), fused, CONVENTION, METRICS)
        (scores,) = score.run(plan, work / "quality" / str(seed)).datasets
        for name in names:
            for metric in METRICS:
                rows = found[name].setdefault(metric, np.zeros((0, len(scores.stems))))
                found[name][metric] = np.vstack([rows, scores.values[name][metric]])
    return found


def curves(name: str, seed: int, work: Path) -> dict[str, list[float]]:
    """The signs of stage II over its steps."""
    lines = (work / "runs" / f"{name}-{seed}" / "log.jsonl").read_text(encoding="utf8").splitlines()
    records = [json.loads(line) for line in lines]
    guided = [record for record in records if SIGNS[0] in record]
    names = [name for name in SIGNS if all(name in record for record in guided)]
    return {key: [round(float(r[key]), 4) for r in guided] for key in ("step", *names)}


def collapse(work: Path, sizes: Sizes) -> dict[str, Any]:
    """Curves and doubts of a run without an anchor."""
    doubts = train({COLLAPSED: NO_ANCHOR}, work, dataclasses.replace(sizes, seeds=1))
    return {"doubts": doubts[COLLAPSED][0], "curves": curves(COLLAPSED, 0, work)}


def interval(found: semantic.Interval) -> dict[str, float]:
    """Value and ends, those that are there."""
    return {name: value for name, value in found._asdict().items() if math.isfinite(value)}


def summary(
    names: Sequence[str],
    found: downstream.Judged,
    seen: Mapping[str, Mapping[str, np.ndarray]],
    doubts: Mapping[str, list[list[str]]],
    work: Path,
) -> dict[str, Any]:
    """Every row: mIoU, its difference to the first, fusion quality, how training ended."""
    cells = downstream_summary.summarise(found)["retrained"]["all"]
    base = seen[names[0]]
    rows: dict[str, Any] = {}
    for name, cell in cells.items():
        row: dict[str, Any] = {
            "miou": interval(cell.mean),
            "miou_of_seeds": list(cell.seeds),
            "iou": {c: x.value for c, x in zip(found.classes.names, cell.classes, strict=True)},
        }
        if cell.difference is not None:
            row["difference"] = interval(cell.difference) | {"p_holm": cell.adjusted}
        if name in seen:
            row["quality"] = {metric: float(x.mean()) for metric, x in seen[name].items()}
            row["quality_change"] = {
                metric: float(x.mean() / base[metric].mean() - 1.0)
                for metric, x in seen[name].items()
            }
            row["doubts"] = doubts[name]
            signs = curves(name, 0, work)
            if signs["step"]:
                row["curves_of_seed_0"] = signs
        rows[name] = row
    means = {name: cells[name].mean.value for name in names}
    low, high = means[names[0]], means.get("supervised")
    if high is not None and high != low:
        for name in names[1:]:
            rows[name]["recovered"] = (means[name] - low) / (high - low)
    return rows


def _require_one_commit(work: Path, versions: Mapping[str, Any]) -> None:
    """Raises UserError where the folder holds runs of another commit than this."""
    marker, commit = work / "commit", str(versions.get("commit"))
    if not marker.exists():
        work.mkdir(parents=True, exist_ok=True)
        marker.write_text(commit, encoding="utf8")
    before = marker.read_text(encoding="utf8")
    if before != commit:
        raise UserError(
            f"{work}: holds runs of commit {before}, this is {commit}: name another folder"
        )


def measure(
    variants: Mapping[str, Mapping[str, Any]],
    work: Path,
    sizes: Sizes,
    command: str,
    offset: int = JUDGED_ON,
) -> dict[str, Any]:
    """Trains, judges on the scenes of that offset, and says everything in one dict."""
    versions, hardware = machine.versions(), machine.hardware()
    _require_one_commit(work, versions)
    doubts = train(variants, work, sizes)
    more = {} if offset == TRIED_ON else {COLLAPSED: collapse(work, sizes)}
    names = tuple(variants)
    plan, found = judged(names, work, sizes, offset)
    return more | {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": hardware,
        "versions": versions,
        "preset": to_dict(experiment_of({}, 0, sizes)),
        "variants": {name: dict(changes) for name, changes in variants.items()},
        "downstream": {
            "train": to_dict(plan.train),
            "test": to_dict(plan.test),
            "steps": plan.steps,
            "segmenter": plan.segmenter,
            "seeds": list(plan.seed_numbers),
        },
        "convention": CONVENTION,
        "rows": summary(names, found, quality(names, work, sizes), doubts, work),
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The table for the eye, and for the guide."""
    first = next(iter(result["variants"])).replace("_", " ")
    head = ["", "mIoU, %", f"less {first}", "of the gap", *METRICS, "classes in use", "agree"]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in result["rows"].items():
        cells = [name.replace("_", " "), _percent(row["miou"])]
        cells.append(_percent(row["difference"], "+") if "difference" in row else "")
        cells.append(f"{100 * row['recovered']:.0f} %" if "recovered" in row else "")
        for metric in METRICS:
            if "quality" not in row:
                cells.append("")
                continue
            change = row["quality_change"][metric]
            told = f" ({100 * change:+.1f} %)" if change else ""
            cells.append(f"{row['quality'][metric]:.3f}{told}")
        signs = row.get("curves_of_seed_0")
        cells.append(f"{signs['classes_in_use'][-1]:.1f}" if signs else "")
        cells.append(f"{100 * signs['agreement'][-1]:.0f} %" if signs else "")
        table.append("| " + " | ".join(cells) + " |")
    return table


def collapse_lines(result: Mapping[str, Any]) -> list[str]:
    """The signs of training with and without an anchor, at a few steps."""
    both = {
        "balanced": result["rows"]["ssvif"]["curves_of_seed_0"],
        "no anchor": result[COLLAPSED]["curves"],
    }
    shown = [
        (f"{what}, {kind}", curve[sign], unit)
        for what, sign, unit in (
            ("classes in use", "classes_in_use", "{:.1f}"),
            ("agreement", "agreement", "{:.0%}"),
            ("confidence", "confidence", "{:.2f}"),
        )
        for kind, curve in both.items()
    ]
    steps = both["balanced"]["step"]
    head = ["step", *(name for name, _, _ in shown)]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for at in sorted({round(k * (len(steps) - 1) / 6) for k in range(7)}):
        cells = [f"{steps[at]:.0f}", *(unit.format(values[at]) for _, values, unit in shown)]
        table.append("| " + " | ".join(cells) + " |")
    return table


def trial_lines(result: Mapping[str, Any]) -> list[str]:
    """The table of settings that were tried, group by group."""
    head = ["", "mIoU, %", *METRICS]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group in result["groups"]:
        table.append(f"| *{group['what']}* |" + " |" * (len(head) - 1))
        for trial in group["trials"]:
            cells = [trial["setting"], f"{100 * trial['miou']:.2f}"]
            cells += [f"{trial[metric]:.3f}" for metric in METRICS]
            table.append("| " + " | ".join(cells) + " |")
    return table


def _percent(found: Mapping[str, float], sign: str = "") -> str:
    word = f"{100 * found['value']:{sign}.2f}"
    if "low" not in found:
        return word
    return f"{word} [{100 * found['low']:{sign}.2f}, {100 * found['high']:{sign}.2f}]"


def main(words: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m bench.ssvif", description=__doc__)
    parse.add_argument(
        "--work", type=Path, required=True, help="folder for runs and pictures; continued"
    )
    parse.add_argument("--settings", action="store_true", help="try other settings, one seed")
    parse.add_argument("--tiny", action="store_true", help="checks that everything runs")
    parse.add_argument(
        "--out", type=Path, default=machine.ROOT / "bench" / "results" / "ssvif", help="for JSON"
    )
    given = parse.parse_args(words)
    sizes = TINY if given.tiny else Sizes(seeds=1) if given.settings else Sizes()
    told = [flag for flag in ("settings", "tiny") if getattr(given, flag)]
    command = " ".join(["python -m bench.ssvif --work DIR", *(f"--{flag}" for flag in told)])
    distributed.compilation_cache()
    try:
        if given.settings:
            result = measure(SETTINGS, given.work, sizes, command, TRIED_ON)
        else:
            result = measure(BOUNDS, given.work, sizes, command)
    except UserError as error:
        print(f"bench.ssvif: {error}", file=sys.stderr)
        return 1
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / ("settings.json" if given.settings else "bounds.json")
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print("\n".join(lines(result)))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
