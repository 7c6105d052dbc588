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
_CHOICES = {
    "scoring": ("likelihood", "generate"),
    "on_bad_image": ("error", "skip"),
    "exif": ("turn", "ignore"),
    "image_mode": ("pad", "resize", "square"),
}


class Entry(NamedTuple):
    """One run of a suite: its name in the table, and the arguments as for it alone."""

    label: str
    args: argparse.Namespace


class Outcome(NamedTuple):
    """What became of an entry: a report, or why there is none."""

    label: str
    report: Mapping[str, Any] | None
    reason: str


def read_config(path: Path, args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Fills in what a YAML file says and the command line does not; ``tasks`` becomes an attribute ``entries``.

    Args:
        path: keys are flags with underscores; ``tasks`` is a list of tasks, or maps names to flags of their own.
        args: of the command line, changed in place.
        defaults: of the flags.

    Raises:
        InputError: the file cannot be read or has a key that is no flag.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict) or not config.get("tasks"):
        raise InputError(f"{path}: must be an object with 'tasks'")
    tasks = config.pop("tasks")
    args.entries = tasks if isinstance(tasks, dict) else {str(task): {} for task in tasks}
    for key, value in config.items():
        if key not in defaults:
            raise InputError(f"{path}: '{key}' is no flag of llava-s2 eval")
        if getattr(args, key) == defaults[key]:
            setattr(args, key, _value(key, value))


def _value(key: str, value: Any) -> Any:
    """A flag's value as the command line would have it; InputError if it is none of the flag's choices."""
    if value is not None and key in _CHOICES and value not in _CHOICES[key]:
        raise InputError(f"{key} {value!r} is not known; use {' or '.join(_CHOICES[key])}")
    if key in ("limit", "batch_size") and value == "auto":
        return None
    counts = ("limit", "batch_size", "max_new_tokens")
    if key in counts and value is not None and (type(value) is not int or value < 1):  # True is an int
        raise InputError(f"{key} {value!r} is no whole number of 1 or more")
    return Path(value) if key in ("data", "output") else value


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
        flags = flags or {}
        if not isinstance(flags, dict) or (strange := [key for key in flags if key not in _OF_TASK]):
            raise InputError(f"task {label}: {strange if isinstance(flags, dict) else flags} are no flags of a task")
        own = copy.copy(args)
        own.task = flags.get("task", label)
        if own.task not in known:
            raise InputError(f"task {own.task!r} is not known; use one of {', '.join(known)}")
        for key, value in flags.items():
            setattr(own, key, _value(key, value))
        if "data" not in flags:
            names = (own.task, *make(own).folders)
            own.data = next((args.data / name for name in names if (args.data / name).is_dir()), args.data / own.task)
        if "output" not in flags:
            own.output = args.output / label
        found.append(Entry(label, own))
    return found


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
