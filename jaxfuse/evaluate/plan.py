"""What an evaluation is asked to do: sets of pairs, methods, a convention; from words or a file."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from jaxfuse import metrics
from jaxfuse.config import UserError
from jaxfuse.data.folders import FolderPairs, list_files, open_folders
from jaxfuse.data.images import EXTENSIONS, FileError, size
from jaxfuse.data.pairs import Pairs

BASELINES = ("visible", "infrared", "average", "maximum")
"""Rows that every evaluation has: one source alone, and the two simplest fusions."""
_NAMED = 5


class PlanError(UserError, ValueError):
    """An evaluation that cannot be done as asked; the message names the place and the remedy."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A set of registered pairs to score on."""

    name: str
    role: Literal["in", "out"] = "in"
    """in: of the distribution that was trained on. out: not. The drop between them is reported."""
    root: str = ""
    """Folder that holds ir/ and vi/ (or infrared/ and visible/)."""
    infrared: str = ""
    visible: str = ""
    """The two folders, where there is no common root."""
    split: str = ""
    """Text file with one stem a line; empty takes every pair."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One method to score: pictures somebody made, or weights to make them with."""

    name: str
    fused: str = ""
    """Folder of fused pictures, named as the pairs; `{dataset}` stands for the set's name."""
    weights: str = ""
    """Weights file, run folder or name of packaged weights; fuses the pairs first."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """An evaluation, whole."""

    datasets: tuple[Dataset, ...]
    methods: tuple[Contender, ...] = ()
    convention: str = "jaxfuse"
    metrics: tuple[str, ...] = ()
    """Names of the convention's metrics; empty takes all."""
    dtype: Literal["float32", "float64"] = "float32"
    reference: str = ""
    """The method that others are tested against; empty takes the first one."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise PlanError("nothing to evaluate on: name at least one set of pairs")
        check_names("dataset", [d.name for d in self.datasets], ())
        check_names("method", [m.name for m in self.methods], BASELINES)
        for method in self.methods:
            if bool(method.fused) == bool(method.weights):
                raise PlanError(f"method {method.name!r}: give either fused or weights")
        if self.convention not in metrics.CONVENTIONS:
            raise PlanError(
                f"convention {self.convention!r}: choose one of {', '.join(metrics.CONVENTIONS)}"
            )
        defined = metrics.names(self.convention)
        for name in self.metrics:
            if name not in defined:
                raise PlanError(
                    f"metric {name!r} is not defined by convention {self.convention!r}: choose "
                    f"among {', '.join(defined)}"
                )

    def check_reference(self) -> None:
        """Raises PlanError where the reference is no row; called when all methods are there."""
        if self.reference and self.reference not in self.rows:
            raise PlanError(
                f"reference {self.reference!r} is not a method: choose one of "
                f"{', '.join(self.rows)}"
            )

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row of the tables: the methods, then the baselines."""
        return (*(m.name for m in self.methods), *BASELINES)

    @property
    def compared_to(self) -> str:
        """The row that others are tested against."""
        return self.reference or self.rows[0]


def read_protocol(path: str | Path) -> Plan:
    """A plan from a TOML file: the fields of `Plan`, with tables [[datasets]] and [[methods]].

    Relative folders in it are meant from the file's own folder. Raises PlanError.
    """
    path = Path(path)
    tree = read_toml(path)
    for kind, fields in (("datasets", Dataset), ("methods", Contender)):
        for number, entry in enumerate(read_tables(path, tree, kind), start=1):
            check_fields(path, f"{kind} {number}", entry, fields)
            for name in ("root", "infrared", "visible", "split", "fused"):
                if entry.get(name) and isinstance(entry[name], str):
                    entry[name] = str(path.parent / entry[name])
            given = entry.get("weights", "")
            # Else the name of packaged weights.
            if given and isinstance(given, str) and (path.parent / given).exists():
                entry["weights"] = str(path.parent / given)
    check_fields(path, "the file", tree, Plan)
    try:
        return msgspec.convert(tree, Plan)
    except msgspec.ValidationError as error:
        raise PlanError(f"{path}: {error}") from None
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tree of a TOML file. Raises PlanError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path}: not TOML ({error})") from None


def contenders(fused: Sequence[str], weights: Sequence[str]) -> list[Contender]:
    """Methods from words [NAME=]PLACE. Raises PlanError."""
    methods = []
    for kind, words in (("fused", fused), ("weights", weights)):
        for word in words:
            name, equals, where = word.partition("=")
            if not equals or "/" in name or Path(word).exists():
                name, where = Path(word).resolve().name, word
            if not where:
                raise PlanError(f"--{kind} {word}: write NAME=PLACE, or the place alone")
            methods.append(Contender(name, **{kind: where}))
    return methods


def check_names(kind: str, given: Sequence[str], taken: Sequence[str]) -> None:
    """Raises PlanError for names that cannot name folders, that are there twice, or taken."""
    for name in given:
        if not name.strip() or name in (".", "..") or set(name) & set('/\\:*?"<>|\r\n\t'):
            raise PlanError(
                f"{kind} name {name!r}: it names a folder: write NAME=PLACE, or name = in "
                "a protocol, with plain letters"
            )
        if name in taken:
            raise PlanError(f"{kind} {name!r}: the baseline is called so: rename yours")
        if given.count(name) > 1:
            raise PlanError(f"{kind} {name!r} is there twice: give each its own name")


def from_words(
    protocol: str,
    dataset: Dataset,
    fused: Sequence[str],
    weights: Sequence[str],
    **changes: Any,
) -> Plan:
    """A plan from a protocol file, or from one set of pairs, with more methods as [NAME=]PLACE.

    dataset: used where no protocol is given; without a name it is called like its folder. changes:
    fields of `Plan`, taken where they are not empty. Raises PlanError.
    """
    place = dataset.root or (str(Path(dataset.visible).parent) if dataset.visible else "")
    if protocol and dataset != Dataset(""):
        raise PlanError(
            f"--protocol {protocol} names the sets: leave out --root, --ir, --vi and --split"
        )
    if protocol:
        base = read_protocol(protocol)
    elif place:
        named = dataclasses.replace(dataset, name=dataset.name or Path(place).resolve().name)
        base = Plan((named,))
    else:
        raise PlanError("no pairs: give --root DIR, or --ir DIR and --vi DIR, or --protocol FILE")
    methods = [*base.methods, *contenders(fused, weights)]
    given = {name: value for name, value in changes.items() if value}
    asked = dataclasses.replace(base, methods=tuple(methods), **given)
    try:
        asked.check_reference()
    except PlanError as error:
        where = f"{protocol}: " if protocol and not given.get("reference") else ""
        raise PlanError(f"{where}{error}") from None
    return asked


def read_tables(path: Path, tree: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The tables [[kind]] of a protocol. Raises PlanError where it is something else."""
    found = tree.get(kind, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise PlanError(f"{path}: {kind} must be tables: write each under [[{kind}]]")
    return found


def check_fields(path: Path, where: str, entry: dict[str, Any], kind: type) -> None:
    """Raises PlanError for a key that is no field of `kind`."""
    fields = [f.name for f in dataclasses.fields(kind)]
    for name in entry:
        if name not in fields:
            raise PlanError(f"{path}: {where}: unknown {name!r}: use {', '.join(fields)}")


@dataclasses.dataclass(frozen=True)
class Opened:
    """A set whose files are all there: every method has every picture in the right size."""

    spec: Dataset
    pairs: FolderPairs
    pictures: dict[str, tuple[Path, ...]]
    """Methods that bring pictures, one file a pair; weights are not here."""


def open_datasets(plan: Plan) -> tuple[Opened, ...]:
    """Finds every file before anything is computed. Raises FileError, naming the first that lacks
    or differs in size and how many do.
    """
    opened = []
    for spec in plan.datasets:
        pairs = open_folders(spec.root, spec.infrared, spec.visible, spec.split)
        pictures = {
            method.name: find_pictures(
                method, Path(method.fused.replace("{dataset}", spec.name)), spec.name, pairs
            )
            for method in plan.methods
            if method.fused
        }
        opened.append(Opened(spec, pairs, pictures))
    return tuple(opened)


def find_pictures(method: Contender, folder: Path, of_set: str, pairs: Pairs) -> tuple[Path, ...]:
    """One picture for each pair, in the pairs' order and size. Raises FileError."""
    if not folder.is_dir():
        raise FileError(folder, f"no such folder (fused by {method.name})", "check the path")
    listing = list_files(folder, EXTENSIONS)
    stems = [pairs.stem(i) for i in range(len(pairs))]
    missing = [stem for stem in stems if stem not in listing.files]
    if missing:
        names = ", ".join(missing[:_NAMED]) + (" ..." if len(missing) > _NAMED else "")
        raise FileError(
            folder,
            f"no picture for {len(missing)} of {len(stems)} pairs of {of_set}: {names}",
            "fuse them too, or give a split file without them",
        )
    twice = [listing.duplicates[stem] for stem in stems if stem in listing.duplicates]
    if twice:
        both = " and ".join(path.name for path in twice[0])
        raise FileError(folder, f"{both} have the same stem", "keep one of them")
    files = tuple(listing.files[stem] for stem in stems)
    wrong = []
    for i, file in enumerate(files):
        found, expected = size(file), pairs.size(i)
        if found != expected:
            wrong.append((file, found, expected))
    if wrong:
        file, (h, w), (eh, ew) = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise FileError(
            file,
            f"{h}x{w} pixels, but its pair is {eh}x{ew}{more}",
            "fuse at full size: scores of resized pictures mean nothing",
        )
    return files
