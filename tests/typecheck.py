"""The checker that annotations of the package go through while tests run; see conftest.py."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype in which an int is a float, as in PEP 484."""
