"""A benchmark's files from the Hugging Face hub, and which revision they are of."""

import json
import zlib
from collections.abc import Sequence
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from llava_s2.errors import InputError, one_line
from llava_s2.eval.benchmark import Benchmark, HubFiles
from llava_s2.eval.run_folder import write_json

_NOTE = "llava_s2_download.json"


def download(benchmark: Benchmark, data: Path) -> None:
    """Fetches the files of the benchmark's variant into its folder, what is there already excepted; unpacks zip files.

    Raises:
        InputError: the variant is not on the hub, or the hub cannot be reached.
    """
    source = _source(benchmark)
    if source is None:
        variant = f", variant {benchmark.variant}," if benchmark.variant else ""
        raise InputError(f"{benchmark.name}{variant} is not on the hub; docs/data.md says where it comes from")
    from filelock import FileLock
    from huggingface_hub import HfApi, snapshot_download

    target = data / source.folder
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(data / f".{_NOTE}.lock"):  # of several processes the first downloads, and the others find all there
        try:
            found = HfApi().dataset_info(source.name)
            names = _chosen(source, [file.rfilename for file in found.siblings or ()])
            patterns = [escape(name) for name in names]
            snapshot_download(
                source.name, repo_type="dataset", revision=found.sha, local_dir=target, allow_patterns=patterns
            )
        except InputError:
            raise
        except Exception as error:  # of its HTTP library too, which is another one from version to version
            what = f"{type(error).__name__}: {one_line(error, 200)}"
            raise InputError(f"{source.name}: cannot be downloaded ({what})") from None
        for name in names:
            if name.endswith(".zip"):
                _unpack(target / name)
        write_json(data / _NOTE, {**_notes(data), _key(source): f"{source.name} at {found.sha}"})


def revision_of(benchmark: Benchmark, data: Path) -> str:
    """Data set and revision of the variant's files, where ``download`` fetched them; else the empty text."""
    source = _source(benchmark)
    return str(_notes(data).get(_key(source), "")) if source else ""


def _source(benchmark: Benchmark) -> HubFiles | None:
    if benchmark.variant is None:
        return next(iter(benchmark.hub.values()), None)
    return benchmark.hub.get(benchmark.variant, benchmark.hub.get(""))


def _chosen(source: HubFiles, names: Sequence[str]) -> list[str]:
    """The names that the patterns mean."""
    chosen: list[str] = []
    for pattern in source.patterns:
        kinds = ([name for name in names if fnmatch(name, kind)] for kind in pattern.split("|"))
        matching = next(filter(None, kinds), [])
        if not matching:
            raise InputError(f"{source.name}: has no {pattern.replace('|', ' or ')}; docs/data.md says what is needed")
        chosen += matching
    return chosen


def _unpack(archive: Path) -> None:
    """Unpacks a zip file beside itself, into the folder of its name; what is there in full already is left."""
    try:
        with ZipFile(archive) as packed:
            held = any(name.startswith(f"{archive.stem}/") for name in packed.namelist())
            folder = archive.parent if held else archive.parent / archive.stem
            for member in packed.infolist():
                path = folder / member.filename
                if not (path.is_file() and path.stat().st_size == member.file_size):
                    packed.extract(member, folder)
    except (BadZipFile, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{archive}: cannot be unpacked ({error}); delete it if it is damaged") from None


def _notes(data: Path) -> dict[str, str]:
    try:
        notes = json.loads((data / _NOTE).read_bytes())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _key(source: HubFiles) -> str:
    return " ".join((source.name, *source.patterns))
