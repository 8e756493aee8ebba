"""Commands about sets of pairs: which there are, whether one is sound, preparing one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxfuse.cli.words import DONE, FAILED, gather, parse, progress, usage
from jaxfuse.config import ConfigError, counted

if TYPE_CHECKING:
    from jaxfuse.data.builders.classes import ClassList

_USAGE = """usage: jaxfuse data check ROOT [--split FILE] [--dataset NAME]
       jaxfuse data list [NAME]
       jaxfuse data prepare NAME --root DIR [--out DIR] [--workers N]

check: everything wrong with a folder of pairs, with the download of a public set (--dataset), or
with a prepared set (its checksums). list: the public sets and what they hold. prepare: a download
into records, which training reads with kind records."""


def data(arguments: Sequence[str]) -> int:
    """List, check and prepare sets of pairs."""
    jobs = {"check": _check, "list": _list, "prepare": _prepare}
    if not arguments or arguments[0] not in jobs:
        return usage(_USAGE, arguments[:1] in (["-h"], ["--help"]))
    return jobs[arguments[0]](arguments[1:])


@dataclasses.dataclass(frozen=True)
class CheckArguments:
    """Report every problem of a set of pairs at once."""

    root: Annotated[Path, tyro.conf.Positional]
    """A folder with ir/ and vi/ (or infrared/ and visible/), a public set's download, or a prepared
    set."""
    split: str = ""
    """A folder of pairs: file with one stem a line; only these are checked."""
    dataset: str = ""
    """ROOT is the download of this public set."""
    classes: str = ""
    """A folder of pairs: class list of its label maps and boxes, how many or a known name or a file
    with one name a line; without, any value will do."""
    label_coding: Literal["index", "rgb"] = "index"
    """A public set: what its label files hold, class indices or the colours of its palette."""


def _check(arguments: Sequence[str]) -> int:
    given = parse(CheckArguments, arguments, "data check")
    if given.dataset:
        if given.split:
            raise ConfigError(f"--split {given.split}: is not read with --dataset: leave it out")
        if given.classes:
            raise ConfigError(f"--classes {given.classes}: not read with --dataset: leave it out")
        from jaxfuse.data.builders import layouts, soundness

        checked = soundness.check_download(
            layouts.named(given.dataset),
            given.root,
            coding=given.label_coding,
            progress=progress("checking"),
        )
        print(checked.text())
        return DONE if checked.ok else FAILED
    if given.label_coding != "index":
        raise ConfigError(f"--label-coding {given.label_coding}: give --dataset NAME as well")
    from jaxfuse.data.builders import marks
    from jaxfuse.data.check import check_folders

    if given.root.is_dir() and marks.is_prepared(given.root):
        wrong = []
        for folder in marks.all_prepared(given.root):
            said, found = marks.verify(folder)
            print("\n".join([*said, *(f"error: {error}" for error in found)]))
            wrong += found
        print(counted(len(wrong), "error"))
        return FAILED if wrong else DONE
    report = check_folders(
        root=str(given.root), split=given.split, classes=_class_list(given.classes)
    )
    print(report.text())
    return FAILED if report.errors else DONE


def _class_list(given: str) -> ClassList | None:
    """What label files may hold; None takes anything."""
    if not given:
        return None
    from jaxfuse.data.builders.classes import numbered, read_class_list

    if given.isdigit():
        if not 2 <= int(given) <= 255:
            raise ConfigError(f"--classes {given}: use 2 to 255")
        return numbered(int(given))
    return read_class_list(given)


@dataclasses.dataclass(frozen=True)
class ListArguments:
    """List the public sets, or everything known of one."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """A set's name."""


def _list(arguments: Sequence[str]) -> int:
    given = parse(ListArguments, arguments, "data list")
    from jaxfuse.data.builders import layouts

    if given.name:
        print(layouts.describe(layouts.named(given.name)))
        return DONE
    for dataset in layouts.PUBLIC.values():
        print(f"{dataset.name:15} {layouts.contents(dataset)}")
        print(f"{'':15} {dataset.source}")
    print("`jaxfuse data list NAME` says more, above all which folders it expects.")
    return DONE


@dataclasses.dataclass(frozen=True)
class PrepareArguments:
    """Check a download, then write it as records: in parallel, continued where it was stopped."""

    name: Annotated[str, tyro.conf.Positional]
    """A set that `jaxfuse data list` shows, or folders for pairs of yours."""
    root: Path
    """Where the download was unpacked."""
    out: Path = Path("prepared")
    """The records go to OUT/NAME/VERSION."""
    workers: int = 0
    """Shards written at once; 0 takes one a core, at most eight. Changes speed only."""
    shard_mib: int = 128
    """About how large a file of records is to be, MiB."""
    split: tuple[str, ...] = ()
    """Splits of your own instead of the set's: NAME=FILE, one stem a line; may be given several
    times in a row."""
    classes: str = ""
    """folders: class list of the label maps, a known name or a file with one name a line."""
    label_coding: Literal["index", "rgb"] = "index"
    """What label files hold: class indices, or the colours of the class list's palette."""
    allow_incomplete: bool = False
    """Prepare what is there, though the whole set has more."""


def _prepare(arguments: Sequence[str]) -> int:
    given = parse(PrepareArguments, gather(("--split",), arguments), "data prepare")
    lists = {}
    for item in given.split:
        name, equals, path = item.partition("=")
        if not (name and equals and path) or name in lists:
            raise ConfigError(f"--split {item}: write NAME=FILE, each name once")
        lists[name] = path
    if given.classes and given.name != "folders":
        raise ConfigError(f"--classes {given.classes}: {given.name} has its own class list")
    from jaxfuse.data.builders import classes, layouts, prepare

    dataset = layouts.named(given.name)
    known = classes.read_class_list(given.classes) if given.classes else None
    done = prepare.prepare(
        dataset,
        given.root,
        given.out,
        workers=given.workers,
        shard_mib=given.shard_mib,
        lists=lists,
        coding=given.label_coding,
        classes=known,
        allow_incomplete=given.allow_incomplete,
        progress=progress("writing"),
        checking=progress("checking"),
        report=lambda checked: print(checked.text(), file=sys.stderr),
    )
    print(done.text())
    return DONE
