"""Fusion networks as files that run without this package: StableHLO for JAX, ONNX for all others.

`write(weights, path)` writes one, its kind by the suffix, and first runs it and compares.
"""

from jaxfuse.export.files import Compared, Written, write
from jaxfuse.export.program import ExportError, Settings

__all__ = ["Compared", "ExportError", "Settings", "Written", "write"]
