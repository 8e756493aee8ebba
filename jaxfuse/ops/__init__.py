"""Pure functions on arrays, on device, clean under jit, vmap and grad."""

from jaxfuse.ops import align, augment, color, filters, resize

__all__ = ["align", "augment", "color", "filters", "resize"]
