"""Several tasks on one loaded model: from the command line or a YAML file; what fails is named and the rest goes on."""

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark
from llava_s2.eval.report import OVERALL, format_table

_OF_TASK = (
    *("task", "data", "output", "scoring", "variant", "rule", "seed", "limit", "batch_size", "max_new_tokens"),
    *("on_bad_image", "exif"),
    *("text_only", "judge_url", "judge_model", "judge_key_variable", "judge_runs", "judge_concurrency"),
    *("judge_timeout", "judge_prices", "download"),
)
"""Flags that a task of a suite may have of its own; those of the model are the suite's."""


class Entry(NamedTuple):
    """One run of a suite: its name in the table, and the arguments as for it alone."""

    label: str
    args: argparse.Namespace


class Outcome(NamedTuple):
    """What became of an entry: a report, or why there is none."""

    label: str
    report: Mapping[str, Any] | None
    reason: str


def read_config(path: Path, args: argparse.Namespace, flags: Mapping[str, argparse.Action]) -> None:
    """Fills in what a YAML file says and the command line does not; ``tasks`` becomes an attribute ``entries``.

    Args:
        path: keys are flags with underscores; ``tasks`` is a list of tasks, or maps names to flags of their own.
        args: of the command line, changed in place.
        flags: of the command, by their names with underscores.

    Raises:
        InputError: the file cannot be read, has a key that is no flag, or a value that is none of the flag's.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    tasks = config.pop("tasks", None) if isinstance(config, dict) else None
    if isinstance(tasks, list) and all(isinstance(task, str) for task in tasks):
        tasks = dict.fromkeys(tasks)
    if not tasks or not isinstance(tasks, dict):
        raise InputError(f"{path}: must be an object with 'tasks', a list of tasks or an object of their flags")
    args.entries = {}
    for label, own in tasks.items():
        if not isinstance(own, dict | None):
            raise InputError(f"{path}: task {label}: {own!r} is no object of flags")
        if strange := [key for key in own or () if key not in _OF_TASK]:
            raise InputError(f"{path}: task {label}: {', '.join(map(str, strange))}: no flag of a task")
        args.entries[str(label)] = {
            key: value if key == "task" else _value(path, flags[key], value) for key, value in (own or {}).items()
        }
    for key, value in config.items():
        if key not in flags or key == "tasks":
            raise InputError(f"{path}: '{key}' is no flag of llava-s2 eval")
        if getattr(args, key) == flags[key].default:
            setattr(args, key, _value(path, flags[key], value))


def _value(path: Path, flag: argparse.Action, value: Any) -> Any:
    """A flag's value as the command line would have it; null is its default. InputError if it cannot have it."""
    if value is None:
        return flag.default
    if flag.nargs == 0:
        if isinstance(value, bool):
            return value
        raise InputError(f"{path}: {flag.dest} {value!r} is not true or false")
    listed = value if isinstance(value, list) else [value]
    if isinstance(flag.nargs, int | None) and len(listed) != (flag.nargs or 1):
        raise InputError(f"{path}: {flag.dest} takes {flag.nargs or 1} value(s), not {value!r}")
    try:
        found = [flag.type(str(item)) if callable(flag.type) else str(item) for item in listed]
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{path}: {flag.dest} {value!r}: {error}") from None
    except ValueError:
        raise InputError(f"{path}: {flag.dest} {value!r} is no number that it takes") from None
    if flag.choices is not None and (strange := [item for item in found if item not in flag.choices]):
        raise InputError(f"{path}: {flag.dest} {strange[0]!r} is not known; use {' or '.join(flag.choices)}")
    return found if flag.nargs else found[0]


def entries(
    args: argparse.Namespace, known: Mapping[str, Any], make: Callable[[argparse.Namespace], Benchmark]
) -> list[Entry]:
    """The runs of a suite, each with a data folder below ``--data`` and an output folder below ``--output``.

    Args:
        args: ``entries`` maps a run's name to its flags; ``task`` among them, if the name is not the task's.
        known: the tasks.
        make: makes a benchmark of the arguments of a run.

    Raises:
        InputError: an unknown task or flag.
    """
    found = []
    for label, flags in args.entries.items():
        own = copy.copy(args)
        own.task = label
        vars(own).update(flags or {})
        if own.task not in known:
            raise InputError(f"task {own.task!r} is not known; use one of {', '.join(known)}")
        if not (flags or {}).get("data"):
            own.data = _folder(args.data, (own.task, *make(own).folders))
        if not (flags or {}).get("output"):
            own.output = args.output / label
        found.append(Entry(label, own))
    return found


def _folder(root: Path, names: Sequence[str]) -> Path:
    """A task's data folder by any of its names, written in any way (``MMMU_Pro``, ``SEED-Bench``, ``mm-vet``)."""
    wanted = [_bare(name) for name in names]
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [path for path in folders if _bare(path.name) in wanted]
    return min(found, key=lambda path: (path.name != names[0], wanted.index(_bare(path.name))), default=root / names[0])


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def run_suite(runs: Sequence[Entry], run: Callable[[argparse.Namespace], Mapping[str, Any] | None]) -> list[Outcome]:
    """Runs one entry after the other; a failure ends its own entry alone."""
    outcomes = []
    for label, args in runs:
        if not args.data.is_dir() and not args.download:
            outcomes.append(Outcome(label, None, f"no data: {args.data} is not there"))
            continue
        try:
            outcomes.append(Outcome(label, run(args), ""))
        except (InputError, RuntimeError, OSError) as error:  # RuntimeError: out of memory and the like
            outcomes.append(Outcome(label, None, f"failed: {' '.join(str(error).split())}"))
            print(f"{label}: {outcomes[-1].reason}")
    return outcomes


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """A table of all entries: the score, or what is missing and why."""
    rows = [("", "score", "95 % interval", "questions")]
    reasons = []
    for label, report, reason in outcomes:
        if report is None or not report["results"]:
            rows.append((label, "-", "", ""))
            reasons.append(
                f"{label}: {reason or (report or {}).get('unscored') or 'no score, the data has no answers'}"
            )
            continue
        overall = report["results"][OVERALL]
        low, high = overall["interval"]
        name, value = next(iter(report.get("metrics", {}).items()), ("", overall["accuracy"]))
        score = f"{value:.4g} ({name})" if name else f"{value:.1%}"
        rows.append((label, score, f"{low:.1%} to {high:.1%}" if not name else "", str(overall["count"])))
    return "\n".join((format_table(rows), *reasons))
