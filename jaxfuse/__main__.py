"""`python -m jaxfuse` is the same program as `jaxfuse`."""

from __future__ import annotations

import sys

from jaxfuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
