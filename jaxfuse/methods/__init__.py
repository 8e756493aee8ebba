"""Ways of training: `build(config, model, facts)` gives a `Method`. One method, one file."""

from __future__ import annotations

from collections.abc import Callable

from jaxfuse.methods import crossfuse
from jaxfuse.methods.base import Facts, Method, Stage
from jaxfuse.models import Model

METHODS: dict[str, Callable[..., Method]] = {
    "crossfuse": crossfuse.build,
}


def build(config, model: Model, facts: Facts) -> Method:
    """The method that `config.name` names. A wrong name raises with the list of right ones."""
    if config.name not in METHODS:
        raise ValueError(
            f"no method named {config.name!r}: choose one of {', '.join(sorted(METHODS))}"
        )
    return METHODS[config.name](config, model, facts)


__all__ = ["METHODS", "Facts", "Method", "Stage", "build"]
