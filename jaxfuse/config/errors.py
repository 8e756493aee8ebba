"""Errors that the user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Base of every error a user can mend; its message is one line: file, value, remedy. The
    command line prints it.
    """


class ConfigError(UserError, ValueError):
    """A setting that cannot work; the message names the field, the value and the remedy."""


def require(ok: bool, field: str, value: object, remedy: str) -> None:
    """Raises ConfigError unless `ok`."""
    if not ok:
        raise ConfigError(f"{field} = {value!r}: {remedy}")
