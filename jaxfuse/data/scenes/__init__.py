"""Made-up street scenes: what is where, how warm it is, and what light falls on it.

`canvas` draws numbered surfaces; `street` plans a street and its ground; `buildings`, `people`,
`cars` and `roadside` draw what stands there and `traffic` says where; `weather` and `light` turn it
all into light and warmth.
"""

from __future__ import annotations

from jaxfuse.data.scenes.canvas import CLASSES, Layers
from jaxfuse.data.scenes.light import World, is_night, stream, world

__all__ = ["CLASSES", "Layers", "World", "is_night", "stream", "world"]
