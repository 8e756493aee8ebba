"""One self-contained HTML page of an evaluation, a run, or both: no network, opens anywhere."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

from jaxfuse import __version__
from jaxfuse.config import UserError, counted
from jaxfuse.data.images import write_bytes
from jaxfuse.evaluate import results, summary
from jaxfuse.evaluate.results import Evaluation
from jaxfuse.report import segmentation, thumbnails
from jaxfuse.report.training import read_run

LIMIT_BYTES = 29_000_000
"""The page stays below 30 MB; pictures are reduced until it does."""


class ReportError(UserError, ValueError):
    """A report that cannot be made; the message names the folder and the remedy."""


def write(
    out: str | Path,
    evaluation: str | Path | None = None,
    run: str | Path | None = None,
    title: str = "",
    limit_bytes: int = LIMIT_BYTES,
) -> Path:
    """Writes the page and returns its path.

    out: an .html file. evaluation: a folder that `jaxfuse evaluate` wrote, for either task; run: a
    folder that `jaxfuse train` wrote; at least one. Raises ReportError, ResultsError or FileError.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ReportError(f"{out}: a report is a web page: end the name in .html")
    if evaluation is None and run is None:
        raise ReportError("nothing to report: give the folder of an evaluation, of a run, or both")
    data: dict[str, Any] = {
        "title": title or "jaxfuse report",
        "about": "",
        "metrics": [],
        "methods": [],
        "datasets": [],
        "reference": "",
        "settings": {},
        "versions": {"jaxfuse (report)": __version__},
        "configuration": [],
        "drop": None,
        "training": None,
        "selection": None,
        "segmentation": None,
        "sets_note": "",
    }
    pictures: list[str] = []
    if run is not None:
        trained = read_run(Path(run))
        data["training"], data["selection"] = trained.training, trained.selection
        data["configuration"] += trained.configuration
        data["versions"]["jaxfuse (training)"] = trained.version
        pictures += trained.pictures
    if evaluation is not None and segmentation.is_one(Path(evaluation)):
        _add_segmentation(data, Path(evaluation), limit_bytes, pictures)
    elif evaluation is not None:
        if (Path(evaluation) / "set" / "set.json").exists() and not _scored(evaluation):
            raise ReportError(
                f"{evaluation}: a downstream evaluation that has not ended: run the same "
                "`jaxfuse evaluate --task segmentation` again"
            )
        found = results.load(evaluation)
        folder = Path(evaluation)
        folder = folder if folder.is_dir() else folder.parent
        _add(data, found)
        left = limit_bytes - len(_json(data)) - sum(map(len, pictures)) - 100_000
        shown = thumbnails.encode(found, folder, max(left, 0), first=len(pictures))
        pictures += shown.pictures
        for entry in data["datasets"]:
            entry["pictures"] = shown.of[entry["name"]]
        data["sets_note"] = shown.note
    write_bytes(out, _page(data, pictures).encode("utf8"))
    return out


def _scored(evaluation: str | Path) -> bool:
    return (Path(evaluation) / "evaluation.json").exists()


def _add_segmentation(
    data: dict[str, Any], place: Path, limit_bytes: int, pictures: list[str]
) -> None:
    """Fills in what a downstream evaluation says, and its panels."""
    judged = segmentation.load(place)
    data["segmentation"], data["about"] = judged.segmentation, judged.about
    data["methods"], data["reference"] = judged.rows, judged.reference
    data["configuration"] += judged.configuration
    data["versions"] |= judged.versions
    left = limit_bytes - len(_json(data)) - sum(map(len, pictures)) - 100_000
    folder = place if place.is_dir() else place.parent
    segmentation.add_panels(judged, folder, max(left, 0), pictures)


def _add(data: dict[str, Any], found: Evaluation) -> None:
    """Fills in what the evaluation says."""
    sets = ", ".join(f"{s.name} ({counted(len(s.stems), 'pair')})" for s in found.datasets)
    convention = found.settings.get("convention", "")
    data["about"] = f"{found.date[:10]} · {sets} · convention {convention}"
    data["metrics"] = [vars(row) for row in found.metrics]
    data["methods"] = [vars(row) for row in found.methods]
    data["reference"], data["settings"] = found.reference, found.settings
    data["versions"] |= found.versions
    said = summary.summarise(found)
    data["drop"] = summary.drop(found, said)
    for scores in found.datasets:
        of_set = said[scores.name]
        data["datasets"].append(
            {
                "name": scores.name,
                "role": scores.role,
                "stems": scores.stems,
                "sizes": scores.sizes,
                "values": {
                    method: {metric: _values(x) for metric, x in row.items()}
                    for method, row in scores.values.items()
                },
                "summary": of_set.cells,
                "tests": of_set.tests,
                "ranks": of_set.ranks,
                "ranked_on": of_set.ranked_on,
                "ranked_last": of_set.ranked_last,
                "significance": summary.significance(found, scores),
                "pictures": {},
            }
        )
    told = {"settings": found.settings, "reference": found.reference, "date": found.date}
    data["configuration"].append(
        {"title": "Evaluation", "text": json.dumps(told, indent=2, ensure_ascii=False)}
    )


def _values(values: Any) -> list[Any]:
    """Six digits are more than a page shows; the files beside it keep all."""
    return [_value(float(x)) for x in values]


def _value(x: float) -> Any:
    if math.isnan(x):
        return None
    return float(f"{x:.6g}") if math.isfinite(x) else ("inf" if x > 0 else "-inf")


def _finite(tree: Any) -> Any:
    """The same without numbers that JSON has no word for."""
    if isinstance(tree, dict):
        return {key: _finite(x) for key, x in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(x) for x in tree]
    return _value(tree) if isinstance(tree, float) else tree


def _json(tree: Any) -> str:
    """JSON that may stand inside a script element, whatever names the files have."""
    text = json.dumps(_finite(tree), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _page(data: dict[str, Any], pictures: list[str]) -> str:
    assets = resources.files("jaxfuse.report") / "assets"
    parts = {
        "title": data["title"].replace("&", "&amp;").replace("<", "&lt;"),
        "style": (assets / "page.css").read_text(encoding="utf8"),
        "script": (assets / "page.js").read_text(encoding="utf8"),
        "data": _json(data),
        "pictures": _json(pictures),
    }
    page = (assets / "page.html").read_text(encoding="utf8")
    # Split, not replaced one after the other: what is put in may itself hold braces.
    out = []
    for piece in page.split("{{"):
        name, closed, rest = piece.partition("}}")
        out.append(parts[name] + rest if closed and name in parts else piece)
    return "".join(out)
