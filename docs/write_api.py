"""Writes the API reference from the docstrings to build/api. Run: python docs/write_api.py"""

from pathlib import Path

import pdoc

import llava_s2

if __name__ == "__main__":
    for name in llava_s2.__all__:  # they are imported when they are first asked for, and pdoc does not ask
        getattr(llava_s2, name)
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("llava_s2", output_directory=Path(__file__).parents[1] / "build" / "api")
