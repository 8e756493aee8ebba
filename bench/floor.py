"""The least time a computation can take on a machine: its arithmetic, its unavoidable traffic.

A measured time means little by itself; its distance from this floor says what is left to gain.
"""

from __future__ import annotations

from typing import Any

from jaxfuse.plan.arithmetic import operations

__all__ = ["floor", "operations", "sweep_bytes"]


def floor(
    operations: float, traffic: float, per_second: float, bytes_per_second: float
) -> dict[str, Any]:
    """The later of two moments: all operations done, all bytes moved.

    operations: floating point operations. traffic: bytes that must be read or written.
    per_second: operations of the machine's best matrix product. bytes_per_second: read or written.
    """
    if operations < 0 or traffic < 0 or not operations + traffic:
        raise ValueError(f"floor of {operations} operations and {traffic} bytes: nothing to do")
    if per_second <= 0 or bytes_per_second <= 0:
        raise ValueError(
            f"floor at {per_second} operations and {bytes_per_second} bytes a second: measure first"
        )
    computing, moving = operations / per_second, traffic / bytes_per_second
    return {
        "operations": operations,
        "bytes": traffic,
        "seconds_by_operations": computing,
        "seconds_by_bytes": moving,
        "seconds": max(computing, moving),
        "bound": "operations" if computing >= moving else "bytes",
    }


def sweep_bytes(model: Any, height: int, width: int) -> float:
    """Feature maps that fusing one pair must read and write: what `Model.passes` name.

    Between two sums over all pixels a map has to be stored, since its second use needs the sum.
    Weights, sums and halos are not counted.
    """
    width_of = {"visible": 4, "infrared": 4}
    total = 0
    for step in model.passes:
        width_of |= {
            name: channels * dtype.itemsize for name, (channels, dtype) in step.writes.items()
        }
        total += sum(width_of[name] for name in (*step.reads, *step.writes))
    return float(total * height * width)
