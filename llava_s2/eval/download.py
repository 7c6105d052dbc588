"""A benchmark's files from the Hugging Face hub, and which revision they are of."""

import json
from pathlib import Path

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark
from llava_s2.eval.run_folder import write_json

_NOTE = "llava_s2_download.json"


def download(benchmark: Benchmark, data: Path) -> None:
    """Fetches the benchmark's data set into its folder, what is there already excepted.

    Raises:
        InputError: the benchmark is not on the hub, or the hub cannot be reached.
    """
    if not benchmark.hub:
        raise InputError(f"{benchmark.name} is not on the hub as one data set; docs/data.md says where it comes from")
    from huggingface_hub import HfApi, snapshot_download

    name, *patterns = benchmark.hub
    try:
        revision = HfApi().dataset_info(name).sha
        snapshot_download(name, repo_type="dataset", revision=revision, local_dir=data, allow_patterns=patterns)
    except Exception as error:  # of huggingface_hub's HTTP library too, which is another one from version to version
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: cannot be downloaded ({type(error).__name__}: {reason})") from None
    write_json(data / _NOTE, {"data set": name, "revision": revision})


def revision_of(data: Path) -> str:
    """Data set and revision of a folder that ``download`` filled; else the empty text."""
    try:
        note = json.loads((data / _NOTE).read_bytes())
        return f"{note['data set']} at {note['revision']}"
    except (OSError, ValueError, LookupError, TypeError):
        return ""
