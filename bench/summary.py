"""What docs/performance.md says in tables, made of bench/results: every number there is in a file.

`tests/test_doc_tables.py` compares them, and writes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bench import pretrain, rivals
from bench.realtime import IN_A_ROW

Results = Mapping[str, dict[str, Any]]
"""Subject -> its result on a processor."""

ASKED = "fuse", "step", "realtime", "video", "start"
"""Subjects whose goals are the package's."""
BETTER = {"lite": (*rivals.RIVALS, "crossfuse"), "crossfuse": tuple(rivals.RIVALS)}
"""Packaged network -> whom it is compared with."""
CHANGED = "depthwise", "dense", "fuse", "step", "windowed", "windows", "large", "realtime", "video"
"""Subjects that changes are measured by."""


def goals(results: Results) -> list[str]:
    """What was asked for and what was reached."""
    table = ["| subject | what | asked | reached | |", "|---|---|---|---|---|"]
    for subject, result in results.items():
        for goal in result["goals"]:
            met = "" if goal["met"] else "**missed**"
            table.append(
                f"| {subject} | {goal['what']} | {goal['goal']} | {goal['measured']:.3g} | {met} |"
            )
    return table


def quality(scores: dict[str, Any]) -> list[str]:
    """On how many core metrics the packaged networks are better than others."""
    sets = {name: [name] for name in scores["scores"]}
    validation = [name for name in sets if name.endswith("_val")]
    columns = {**sets, "validation pairs together": validation}
    table = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for a, others in BETTER.items():
        for b in others:
            won = [len(pretrain.metrics_won(scores, of, a, b)) for of in columns.values()]
            told = " | ".join(f"{n} of {len(scores['metrics'])}" for n in won)
            table.append(f"| `{a}` better than {b} | {told} |")
    return table


def floors(results: Results) -> list[str]:
    """How far everything is from its floor."""
    table = ["| subject | side | time | floor | times its floor |", "|---|---|---|---|---|"]
    for subject, result in results.items():
        for name, side in result["sides"].items():
            if "gap" not in side:
                continue
            took, least = (1e3 * x for x in (side["median_seconds"], side["floor"]["seconds"]))
            bound = side["floor"]["bound"]
            table.append(
                f"| {subject} | {name} | {took:.3g} ms | {least:.3g} ms ({bound}) | "
                f"{side['gap']:.2g} |"
            )
    return table


class Change(NamedTuple):
    """Something that was tried."""

    what: str
    expected: str
    subject: str
    measured: Callable[[dict[str, Any]], str]
    outcome: str


def _times(pair: str) -> Callable[[dict[str, Any]], str]:
    def told(result: dict[str, Any]) -> str:
        found = result["ratios"][pair]["time"]
        return f"{found['median']:.2f} times ({found['lowest']:.2f} to {found['highest']:.2f})"

    return told


def _frames(side: str) -> Callable[[dict[str, Any]], str]:
    def told(result: dict[str, Any]) -> str:
        took = result["sides"][f"{side}, {IN_A_ROW} in a row"]["median_seconds"]
        return f"{1e3 * took / IN_A_ROW:.3g} ms a picture, {IN_A_ROW} in a row"

    return told


def _faster_and_smaller(pair: str) -> Callable[[dict[str, Any]], str]:
    def told(result: dict[str, Any]) -> str:
        memory = result["ratios"][pair]["peak_rss"]
        return f"{_times(pair)(result)}, {memory:.2f} times less memory"

    return told


def _as_long_and_as_much(pair: str) -> Callable[[dict[str, Any]], str]:
    def told(result: dict[str, Any]) -> str:
        memory = result["ratios"][pair]["peak_rss"]
        return f"{_times(pair)(result)} as long, {memory:.2f} times the memory"

    return told


def _recomputed(result: dict[str, Any]) -> str:
    found = result["ratios"]["ours, XLA alone / ours, XLA alone, nothing recomputed"]
    return (
        f"{found['time']['median']:.2f} times as long, {found['peak_rss']:.2f} times the memory, "
        "as keeping everything"
    )


def _whole_of_a_larger_one(result: dict[str, Any]) -> str:
    whole, parts = (result["sides"][f"960x1280 {way}"] for way in ("whole", "in windows"))
    return (
        f"960x1280: {whole['median_seconds']:.3g} s and {whole['peak_rss_bytes'] / 1e9:.2f} GB, in "
        f"windows {parts['median_seconds']:.3g} s and {parts['peak_rss_bytes'] / 1e9:.2f} GB"
    )


CHANGES = (
    Change(
        "depthwise 3x3 as nine shifted products instead of XLA's grouped convolution",
        "several times faster",
        "depthwise",
        _times("forward, grouped / forward, shifted"),
        "taken on processors and TPUs; GPUs keep cuDNN's",
    ),
    Change(
        "its gradient over eight columns at a time, instead of nine sums",
        "vectorised sums",
        "depthwise",
        _times("kernel, nine sums / kernel, shifted"),
        "taken",
    ),
    Change(
        "gradient of the dense 3x3 kernel in bands of rows that stay in cache",
        "twice as fast",
        "dense",
        _times("derived / bands"),
        "taken on processors",
    ),
    Change(
        "local work by kernels in C++: LayerNorm, 1x1, 3x3, activation and projection of one row "
        "after the other, in a core's cache ([ADR 10](adr/0010-kernels.md))",
        "2.2 to 2.5 s instead of 8.7",
        "fuse",
        _times("whole, XLA alone / whole"),
        "taken on processors where there is a C++ compiler (`model.kernels`)",
    ),
    Change(
        "their backward passes, which compute everything but a block's input again",
        "1.2 s instead of 4.6",
        "step",
        _faster_and_smaller("ours, XLA alone / ours"),
        "taken as above",
    ),
    Change(
        "a Restormer block by kernels, 96x96 pixels",
        "2.5 times",
        "windowed",
        lambda result: _times("block kernels / block ours")(result) + " as long",
        "taken as above",
    ),
    Change(
        "XLA alone: exact strips of windows of 96x96 instead of the whole image",
        "no page faults, a third of the memory",
        "fuse",
        _times("whole, XLA alone / strips, XLA alone"),
        "taken on processors without kernels",
    ),
    Change(
        "XLA alone: windows of 96x96 instead of 128x160",
        "temporary arrays below 32 MiB, which glibc does not map anew",
        "windows",
        _times("windows of 128x160 / windows of 96x96"),
        "taken without kernels",
    ),
    Change(
        "kernels: four windows of 128x160 instead of one of 240x320",
        "as fast, for less memory",
        "windows",
        _as_long_and_as_much("windows of 128x160, kernels / windows of 240x320, kernels"),
        "taken for what does not go whole",
    ),
    Change(
        "kernels: one program for a whole picture of up to half a megapixel, windows beyond",
        "no copies between windows, for more memory",
        "large",
        _whole_of_a_larger_one,
        "taken; larger ones go in windows for their memory's sake",
    ),
    Change(
        "XLA alone: blocks computed again in the backward pass",
        "less memory, a third more time",
        "step",
        _recomputed,
        "taken on processors (`model.remat`)",
    ),
    Change(
        "sums of the attention: q with k and squares apart, instead of all with all",
        "40 % less of this part",
        "windowed",
        _times("sums whole / sums products"),
        "no faster; taken for its fewer operations",
    ),
    Change(
        "dense 3x3 by gathered columns and one product",
        "a product may beat the convolution",
        "windowed",
        lambda result: _times("dense columns / dense convolution")(result) + " as long",
        "not taken",
    ),
    Change(
        "dense 3x3 by three gathered columns and three products",
        "less to copy",
        "windowed",
        lambda result: _times("dense rows / dense convolution")(result) + " as long",
        "not taken",
    ),
    Change(
        "pad normalised features, 65 channels, before expanding them, instead of afterwards",
        "25 % less of a block",
        "windowed",
        lambda result: _times("block padded / block ours")(result) + " as long",
        "not taken: small, and the backward pass would need its own form",
    ),
    Change(
        "`lite`: convolutions of 16 channels on squares of 2x2 and of 64 on 8x8",
        "25 frames a second need 40 ms",
        "realtime",
        _frames("lite"),
        "taken",
    ),
    Change(
        "colours split off and put back by one compiled program with the network",
        "a few ms beside the network",
        "realtime",
        _frames("picture"),
        "taken",
    ),
    Change(
        "videos: the stored luma plane goes to the network, chroma is not touched; reading, fusing "
        "and writing overlap",
        "below 10 ms a frame beside the network",
        "video",
        lambda result: f"{result['goals'][0]['measured']:.3g} frames a second, file to file",
        "taken",
    ),
)


def changes(results: Results) -> list[str]:
    """What was tried, what was expected, measured and decided."""
    table = ["| change | expected | measured | result | outcome |", "|---|---|---|---|---|"]
    for each in CHANGES:
        told = each.measured(results[each.subject])
        table.append(
            f"| {each.what} | {each.expected} | {told} | `{each.subject}-cpu.json` | "
            f"{each.outcome} |"
        )
    return table


def precision(results: Results) -> list[str]:
    """bfloat16 against float32."""
    result = results["precision"]
    table = [
        "| network | largest difference, grey levels | mean | float32 / bfloat16, time |",
        "|---|---|---|---|",
    ]
    for network in ("crossfuse", "lite"):
        off = result["agreement"]
        times = result["ratios"][f"{network} float32 / {network} bfloat16"]["time"]["median"]
        table.append(
            f"| {network} | {off[f'{network}, largest difference in grey levels']:.2f} | "
            f"{off[f'{network}, mean difference in grey levels']:.3f} | {times:.2f} |"
        )
    return table
