"""The parts of the package import one way, also inside functions."""

import ast
from pathlib import Path

import llava_s2

PACKAGE = Path(llava_s2.__file__).parent
BELOW = {
    "s2": set(),
    "model": {"s2"},
    "data": {"model", "s2"},
    "train": {"data", "model", "s2"},
    "eval": {"data", "model", "s2"},
    "serve": {"data", "model", "s2"},
    "bench": {"eval", "data", "model", "s2"},
}
"""Part -> those that it may use beside itself and ``errors``."""


def imported(file):
    """Names of the package's modules that a file imports, wherever in it."""
    package = ["llava_s2", *file.parent.relative_to(PACKAGE).parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_one_way():
    parts = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts == set(BELOW)
    for part, below in BELOW.items():
        for file in (PACKAGE / part).rglob("*.py"):
            if file.name == "__main__.py":  # the command itself
                continue
            used = {name.split(".")[1] for name in imported(file) if name.startswith("llava_s2.")}
            assert used <= {part, "errors", "__version__"} | below, file
