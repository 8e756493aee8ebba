"""The kinds of image sets a config can name."""

from __future__ import annotations

from collections.abc import Callable

from jaxfuse.config import SourceConfig
from jaxfuse.data.folders import FolderPairs
from jaxfuse.data.pairs import DataError, Pairs
from jaxfuse.data.synthetic import SyntheticPairs

DATASETS: dict[str, Callable[[SourceConfig], Pairs]] = {
    "folders": FolderPairs.open,
    "synthetic": SyntheticPairs.open,
}


def open_source(source: SourceConfig) -> Pairs:
    """The pairs a source names. Raises DataError where they cannot be had."""
    if source.kind not in DATASETS:
        raise DataError(
            f"no data set of kind {source.kind!r}: choose one of {', '.join(sorted(DATASETS))}"
        )
    return DATASETS[source.kind](source)
