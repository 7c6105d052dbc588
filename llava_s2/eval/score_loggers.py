"""Scores of a run where training's curves are: TensorBoard or Weights & Biases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError

LOGGERS = ("tensorboard", "wandb")


def check_loggers(names: Sequence[str]) -> None:
    """Raises InputError if a logger's package is missing; to be called before any work."""
    for name in names:
        try:
            __import__("torch.utils.tensorboard" if name == "tensorboard" else name)
        except ImportError:
            raise InputError(f"--report_to {name} takes the package {name}: pip install {name}") from None


def log_scores(names: Sequence[str], report: Mapping[str, Any], output: Path) -> None:
    """Sends each category's accuracy, and the benchmark's own figures, as ``TASK/NAME``.

    Args:
        names: of ``LOGGERS``.
        report: a finished run's.
        output: its folder; TensorBoard's files go into it.
    """
    task = "/".join(filter(None, (report["task"], report.get("variant"))))
    scores = {f"{task}/{name}": row["accuracy"] for name, row in report["results"].items()}
    scores |= {f"{task}/{name}": value for name, value in report.get("metrics", {}).items()}
    if "tensorboard" in names:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(output / "tensorboard")) as writer:
            for name, value in scores.items():
                writer.add_scalar(name, value, 0)
    if "wandb" in names:
        import wandb

        settings = {key: value for key, value in report.items() if isinstance(value, str | int | float)}
        with wandb.init(project="llava-s2-eval", name=f"{report['task']} {report['model']}", config=settings) as run:
            run.log(scores)
