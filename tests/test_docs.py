"""The code in the docs runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = [
    pytest.param(block, id=f"{name}-{index}")
    for name in ("s2.md",)
    for index, block in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_in_the_docs_runs(block: str) -> None:
    exec(compile(block, "docs", "exec"), {})
