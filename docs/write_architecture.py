"""Writes the tree of docs/architecture.md from the modules' first sentences. Run: python docs/write_architecture.py"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- tree: written by docs/write_architecture.py -->\n", "<!-- end of tree -->\n"


def tree() -> str:
    """A heading for each folder of the package, and a row for each file: its name and how its docstring begins."""
    lines = []
    for folder in sorted(path for path in [ROOT / "llava_s2", *(ROOT / "llava_s2").rglob("*")] if path.is_dir()):
        rows = [row for file in sorted(folder.glob("*.py")) if (row := _row(file))]
        if rows:
            lines += [f"### `{folder.relative_to(ROOT)}/`", "", "| file | |", "| --- | --- |", *rows, ""]
    return "\n".join(lines) + "\n"


def _row(file: Path) -> str | None:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if docstring is None:
        return None
    sentence = " ".join(docstring.split("\n\n")[0].split())
    return f"| `{file.name}` | {sentence.replace('|', chr(92) + '|')} |"


def page() -> str:
    """The page with its tree as the code is now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return before + START + "\n" + tree() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
