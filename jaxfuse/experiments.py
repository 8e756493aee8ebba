"""Finds experiments: presets by name, in a checkout and in an installed wheel, or files."""

from __future__ import annotations

import runpy
from pathlib import Path

from jaxfuse.config import ConfigError, Experiment, load_json

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "presets", _PACKAGE.parent / "configs")
"""Where presets lie: inside an installed wheel, and beside the package in a checkout."""


def preset_files() -> dict[str, Path]:
    """Preset names and their files."""
    found: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted(folder.glob("*.py")):
            if not path.stem.startswith("_"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def describe_presets() -> dict[str, str]:
    """Preset names and the first line of their docstrings."""
    import ast

    lines = {}
    for name, path in preset_files().items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or ""
        lines[name] = text.splitlines()[0] if text else ""
    return lines


def find(name: str) -> Experiment:
    """The experiment of a preset's name, a JSON config, a Python file with `get()`, or a run folder.

    Raises ConfigError, which lists the presets there are.
    """
    path = Path(name)
    if path.is_dir() and (path / "config.json").exists():
        return load_json(path / "config.json")
    if path.suffix == ".json":
        return load_json(path)
    if path.suffix != ".py":
        files = preset_files()
        if name not in files:
            raise ConfigError(
                f"no preset named {name!r}: choose one of {', '.join(files) or '(none installed)'}, "
                "or give a .json or .py file or a run folder"
            )
        path = files[name]
    elif not path.exists():
        raise ConfigError(f"{path}: no such file")
    namespace = runpy.run_path(str(path))
    if not callable(namespace.get("get")):
        raise ConfigError(f"{path}: defines no get(): write `def get() -> Experiment:`")
    experiment = namespace["get"]()
    if not isinstance(experiment, Experiment):
        raise ConfigError(f"{path}: get() gave {type(experiment).__name__}, not an Experiment")
    return experiment
