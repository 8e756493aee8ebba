"""Metrics of fused images under named conventions, and statistics of them.

`score` computes, `to_gray` prepares, `names` and `describe` say what there is.
"""

from jaxfuse.metrics.gray import to_gray
from jaxfuse.metrics.scoring import COLOR, VERSION, Row, describe, forget, names, score
from jaxfuse.metrics.table import CONVENTIONS, METRICS, Definition, Metric

__all__ = [
    "COLOR",
    "CONVENTIONS",
    "METRICS",
    "VERSION",
    "Definition",
    "Metric",
    "Row",
    "describe",
    "forget",
    "names",
    "score",
    "to_gray",
]
