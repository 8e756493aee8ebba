"""A fused image with its two sources, and what metrics derive from them in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

from jaxfuse.shapes import Array


@dataclasses.dataclass
class Triple:
    """Grey levels 0..255 as floats, each (b, h, w)."""

    fused: Array
    visible: Array
    infrared: Array
    _made: dict[Hashable, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def sources(self) -> tuple[Array, Array]:
        return self.visible, self.infrared

    @property
    def images(self) -> tuple[Array, Array, Array]:
        """Visible, infrared, fused: the order of every list of per-image results."""
        return self.visible, self.infrared, self.fused

    @property
    def pixels(self) -> int:
        """Pixels of one image."""
        return self.fused.shape[-2] * self.fused.shape[-1]

    def shared(self, make: Callable[..., Any], *arguments: Hashable) -> Any:
        """`make(self, *arguments)`, computed once, whatever number of metrics asks for it."""
        key = (make, *arguments)
        if key not in self._made:
            self._made[key] = make(self, *arguments)
        return self._made[key]
