"""Ways of training: `build(config, model, facts)` gives a `Method`. One method, one file."""

from __future__ import annotations

from collections.abc import Callable

from jaxfuse.methods import crossfuse, segmentation, ssvif
from jaxfuse.methods.base import RANK, Facts, Memory, Method, Stage
from jaxfuse.models import Model
from jaxfuse.shapes import Params

METHODS: dict[str, Callable[..., Method]] = {
    "crossfuse": crossfuse.build,
    "segmentation": segmentation.build,
    "ssvif": ssvif.build,
}


def build(
    config,
    model: Model,
    facts: Facts,
    start: Params | None = None,
    teacher: tuple[Model, Params] | None = None,
) -> Method:
    """The method that `config.name` names. A wrong name raises with the list of right ones.

    start: parameters that a method with a segmentation network starts it from. teacher: the fusion
    network that CrossFuse's stage II imitates, with its parameters.
    """
    if config.name not in METHODS:
        raise ValueError(
            f"no method named {config.name!r}: choose one of {', '.join(sorted(METHODS))}"
        )
    named = {"start": start, "teacher": teacher}
    given = {name: value for name, value in named.items() if value is not None}
    return METHODS[config.name](config, model, facts, **given)


__all__ = ["METHODS", "RANK", "Facts", "Memory", "Method", "Stage", "build"]
