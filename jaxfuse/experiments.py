"""Finds experiments: presets by name, in a checkout and in an installed wheel, or files."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

from jaxfuse.config import ConfigError, Experiment, UserError, load_json

PACKAGE = Path(__file__).resolve().parent


def preset_files(package: Path = PACKAGE) -> dict[str, Path]:
    """Preset names and their files: in an installed wheel, or beside the package in a checkout."""
    inside = package / "presets"
    # Not both: beside an installed package lies what others installed.
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def describe_presets() -> dict[str, str]:
    """Preset names and the first line of their docstrings."""
    lines = {}
    for name, path in preset_files().items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or ""
        lines[name] = text.splitlines()[0] if text else ""
    return lines


def find(name: str) -> Experiment:
    """The experiment of a preset's name, JSON config, Python file with `get()`, or run folder.

    Raises ConfigError, which lists the presets there are.
    """
    path = Path(name)
    if path.is_dir() and (path / "config.json").exists():
        return load_json(path / "config.json")
    if path.suffix == ".json":
        return load_json(path)
    if path.suffix != ".py":
        files = preset_files()
        if name not in files and path.exists():
            raise ConfigError(
                f"{name}: no preset, no run folder (it would hold config.json) and no .json or .py "
                "file: name one of these"
            )
        if name not in files:
            raise ConfigError(
                f"no preset named {name!r}: choose one of {', '.join(files) or '(none here)'}, "
                "or give a .json or .py file or a run folder"
            )
        path = files[name]
    elif not path.exists():
        raise ConfigError(f"{path}: no such file")
    try:
        namespace = runpy.run_path(str(path))
        if not callable(namespace.get("get")):
            raise ConfigError(f"{path}: defines no get(): write `def get() -> Experiment:`")
        experiment = namespace["get"]()
    except UserError:
        raise
    except Exception as error:  # the file is the user's and may raise anything
        raise ConfigError(f"{path}: {type(error).__name__}: {error}: mend this file") from error
    if not isinstance(experiment, Experiment):
        raise ConfigError(f"{path}: get() gave {type(experiment).__name__}, not an Experiment")
    return experiment
