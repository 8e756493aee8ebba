"""Who may import whom, read from the source. docs/architecture.md draws the same picture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "jaxfuse"

LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"shapes", "config"}),
    frozenset({"ops", "distributed", "experiments"}),
    frozenset({"kernels"}),
    frozenset({"models", "losses", "metrics", "data"}),
    frozenset({"methods", "checkpoint", "convert", "weights"}),
    frozenset({"train", "infer"}),
    frozenset({"evaluate", "export", "plan"}),
    frozenset({"report"}),
    frozenset({"cli", "demo"}),
    frozenset({"__init__", "__main__"}),
)
"""Rooms from the ground up. A room may import rooms of lower levels only, never one beside it."""

LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}

NEIGHBOURS = {
    ("weights", "convert"): "published files are read by weights and renamed by convert",
    ("cli", "demo"): "demo is one of its commands",
}
"""The only imports between rooms of one level, and why."""

ONLY_IN = {
    "flax": {"models"},
    "orbax": {"checkpoint"},
    "optax": {"methods", "train"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "torch": {"convert", "weights"},
    "jax2onnx": {"export"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "beartype": set(),
    "pytest": set(),
    "scipy": {"metrics"},
    "av": {"infer"},
}
"""Packages that only these rooms import. beartype and pytest are there for development only."""

NOT_IN = {"data": {"jax", "jaxlib"}}
"""Reading data needs no accelerator library, so its worker processes start without one."""

ENVIRONMENT_READERS = {"distributed": "cluster addresses and device counts come from launchers"}
"""Rooms that may read environment variables, and why."""

EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
MAX_LINES = 450


def room_of(path: Path, package: Path) -> str:
    first = path.relative_to(package).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST, path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported; names in `from a import b` come as a.b."""
    parents = (package.name, *path.relative_to(package).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(parents[: len(parents) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def reads_environment(tree: ast.AST) -> Iterator[int]:
    names = {"environ", "environb", "getenv", "putenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            if isinstance(node.value, ast.Name) and node.value.id == "os":
                yield node.lineno
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in names for alias in node.names)
        ):
            yield node.lineno


def import_problem(room: str, name: str) -> str | None:
    """What is wrong with `room` importing `name`, if anything."""
    top, _, rest = name.partition(".")
    if top != PACKAGE:
        allowed = ONLY_IN.get(top)
        if allowed is not None and room not in allowed:
            return f"imports {top}, which only {', '.join(sorted(allowed)) or 'no room'} may"
        if top in NOT_IN.get(room, ()):
            return f"imports {top}, which {room} must not"
        return None
    target = rest.split(".")[0]
    if target == "__version__":
        return None
    if target not in LEVEL:
        target = "__init__"
    if target == room:
        return None
    if LEVEL[target] > LEVEL[room]:
        return f"imports {target}, which stands above {room}"
    if LEVEL[target] == LEVEL[room] and (room, target) not in NEIGHBOURS:
        return f"imports {target}, which stands beside {room}"
    return None


def problems(package: Path) -> list[str]:
    """Every breach of the rules in a package folder, as `file:line: what`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        room = room_of(path, package)
        text = path.read_text(encoding="utf8")
        tree = ast.parse(text, filename=str(path))
        lines = len(text.splitlines())
        if lines > MAX_LINES:
            found.append(f"{where}: {lines} lines, more than {MAX_LINES}: is it two things?")
        for part in path.relative_to(package).with_suffix("").parts:
            if part in EMPTY_NAMES:
                found.append(f"{where}: {part!r} says nothing about what is in it")
        if room not in ENVIRONMENT_READERS:
            found += [f"{where}:{line}: reads the environment" for line in reads_environment(tree)]
        if room not in LEVEL:
            found.append(f"{where}: room {room!r} has no level: give it one in LEVELS")
            continue
        for line, name in imports(tree, path, package):
            problem = import_problem(room, name)
            if problem:
                found.append(f"{where}:{line}: {problem}")
    return found


def test_the_package_keeps_its_layers(repo: Path) -> None:
    assert problems(repo / PACKAGE) == []


def test_no_room_has_two_levels() -> None:
    assert sum(len(rooms) for rooms in LEVELS) == len(LEVEL)


def write(package: Path, where: str, text: str) -> None:
    path = package / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")


def test_every_kind_of_breach_is_found(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    write(package, "__init__.py", "__version__ = '1'\n")
    write(package, "shapes.py", "")
    write(package, "models/__init__.py", "from flax import nnx\n")
    write(package, "losses/terms.py", "from jaxfuse.models import nothing\n")
    write(package, "ops/color.py", "def f():\n    import jaxfuse.train.loop\n")
    write(package, "ops/align.py", "from jaxfuse import infer, shapes\nfrom jaxfuse import fuse\n")
    write(package, "train/loop.py", "from ..infer import predict\nimport orbax.checkpoint as ocp\n")
    write(package, "infer/predict.py", "from jaxfuse.train import loop\nimport optax\n")
    write(package, "data/folders.py", "import jax\nimport os\nx = os.environ['A']\n")
    write(package, "data/helpers.py", "from os import getenv\n")
    write(package, "cli.py", "from jaxfuse import __version__, demo\n" + "\n" * MAX_LINES)
    write(package, "demo.py", "from . import cli\n")
    write(package, "attic.py", "")
    assert set(problems(package)) == {
        "attic.py: room 'attic' has no level: give it one in LEVELS",
        "cli.py: 451 lines, more than 450: is it two things?",
        "data/folders.py:1: imports jax, which data must not",
        "data/folders.py:3: reads the environment",
        "data/helpers.py: 'helpers' says nothing about what is in it",
        "data/helpers.py:1: reads the environment",
        "demo.py:1: imports cli, which stands beside demo",
        "infer/predict.py:1: imports train, which stands beside infer",
        "infer/predict.py:2: imports optax, which only methods, train may",
        "losses/terms.py:1: imports models, which stands beside losses",
        "ops/align.py:1: imports infer, which stands above ops",
        "ops/align.py:2: imports __init__, which stands above ops",
        "ops/color.py:2: imports train, which stands above ops",
        "train/loop.py:1: imports infer, which stands beside train",
        "train/loop.py:2: imports orbax, which only checkpoint may",
    }


def test_a_tree_that_keeps_the_rules_is_accepted(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    write(package, "__init__.py", "from jaxfuse.infer import predict\n")
    write(package, "__main__.py", "from jaxfuse.cli import main\n")
    write(package, "distributed.py", "import os\nx = os.environ\nfrom jaxfuse import __version__\n")
    write(package, "models/__init__.py", "from jaxfuse.models import base\nfrom . import base\n")
    write(package, "models/base.py", "from flax import nnx\nfrom ..ops import color\nimport jax\n")
    write(package, "ops/color.py", "from jaxfuse.shapes import Array\n")
    write(package, "shapes.py", "import jaxtyping\n")
    write(
        package, "infer/predict.py", "from jaxfuse.models import base\nimport jaxfuse.ops.color\n"
    )
    write(package, "cli.py", "from jaxfuse import config, infer\n")
    write(package, "config.py", "")
    assert problems(package) == []
