"""The rooms of the package import one way, also inside functions, and no two files import each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import llava_s2

PACKAGE = Path(llava_s2.__file__).parent
BELOW = {
    "s2": set(),
    "towers": {"s2"},
    "model": {"formats", "towers", "s2"},
    "formats": {"model", "towers", "s2"},
    "synthetic": set(),
    "data": {"synthetic", "model", "formats", "towers", "s2"},
    "train": {"data", "model", "formats", "towers", "s2"},
    "eval": {"data", "model", "formats", "towers", "s2"},
    "serve": {"data", "synthetic", "model", "formats", "towers", "s2"},
    "studies": {"towers", "s2"},
    "bench": {"eval", "synthetic", "model", "formats", "towers", "s2"},
}
"""Room -> those that it may use beside itself and the single files beside the rooms (``errors``, ``files`` …)."""


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
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(BELOW)
    for room in rooms:
        for file in (PACKAGE / room).rglob("*.py"):
            if file.name == "__main__.py":  # the command itself
                continue
            used = {name.split(".")[1] for name in imported(file) if name.startswith("llava_s2.")}
            assert used <= {room, "errors", "files", "weight_files", "__version__"} | BELOW[room], file


def test_no_two_files_import_each_other_in_a_circle():
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph = {
        module: {known for name in imported(path) for known in (name, name.rpartition(".")[0]) if known in files}
        for module, path in files.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
