"""A linear classifier on fixed features: by SGD, as the paper trains it, or in closed form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_s2.studies.feature_cache import Features
from llava_s2.studies.training_loop import train

_STRENGTHS = tuple(10.0**power for power in range(-6, 1))


@dataclass(frozen=True)
class Scores:
    """What a probe does on the images of a split.

    Attributes:
        loss: mean cross-entropy. right: for each image, whether its class has the largest logit. predictions: classes.
        margin: for each image, the log-probability of its class.
    """

    loss: float
    right: np.ndarray
    predictions: np.ndarray
    margin: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


class LinearProbe(nn.Module):
    """One linear layer on features that are standardised by the training images' mean and deviation."""

    def __init__(self, mean: Tensor, deviation: Tensor, classes: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.linear = nn.Linear(len(mean), classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, classes) of features (n, channels)."""
        return self.linear((features - self.mean) / self.deviation)

    @torch.no_grad()
    def score(self, features: Features, labels: Tensor) -> Scores:
        device = self.linear.weight.device
        logits = torch.cat([self(x.mean(1).to(device)) for x in features.batches(1024)]).cpu()
        margin = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
        predictions = logits.argmax(1)
        return Scores(float(-margin.mean()), (predictions == labels).numpy(), predictions.numpy(), margin.numpy())


def standardisation(features: Features) -> tuple[Tensor, Tensor]:
    """Mean and deviation (channels) of mean-pooled features, from sums in float64."""
    total = torch.zeros(features.channels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for batch in features.batches(1024):
        x = batch.mean(1).double()
        total += x.sum(0)
        squares += x.square().sum(0)
    mean = total / len(features)
    variance = (squares / len(features) - mean.square()).clamp_min(0)
    return mean.float(), variance.sqrt().clamp_min(1e-4).float()


def train_by_sgd(
    features: Features,
    labels: Tensor,
    classes: int,
    *,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
    file: Path,
) -> LinearProbe:
    """SGD with momentum 0.9 and a cosine schedule on the cross-entropy.

    Args:
        features: (n, positions, channels); the mean over positions is classified. labels: (n).
        rate: learning rate at the start. file: see `training_loop.train`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    probe = LinearProbe(*standardisation(features), classes).to(device)

    def loss(index: Tensor) -> Tensor:
        return F.cross_entropy(probe(features[index].mean(1).to(device)), labels[index].to(device))

    train(
        probe, loss, len(labels), epochs=epochs, rate=rate, batch=batch, seed=seed, file=file, optimizer="sgd",
        name="linear probe",
    )  # fmt: skip
    return probe


def train_in_closed_form(features: Features, labels: Tensor, classes: int, *, seed: int) -> tuple[LinearProbe, float]:
    """Ridge regression of one-hot labels, its strength chosen on a tenth of the images, then fitted on all.

    Returns:
        The probe, its logits scaled to the smallest cross-entropy on that tenth, and the strength.
    """
    probe = LinearProbe(*standardisation(features), classes)
    out = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)) < max(len(labels) // 10, 1))
    sums = {name: _sums(probe, features, labels, mask) for name, mask in (("fit", ~out), ("out", out))}
    held_x = torch.cat([x[mask] for x, mask in _standardised(probe, features, out)])
    held_y = labels[out]

    def error(strength: float) -> tuple[float, float]:
        logits = held_x @ _solve(sums["fit"], strength)
        return -float((logits.argmax(1) == held_y).float().mean()), strength

    strength = min(map(error, _STRENGTHS))[1]
    logits = held_x @ _solve(sums["fit"], strength)
    scale = min(
        (2.0**power for power in range(-2, 9)), key=lambda s: float(F.cross_entropy(logits.float() * s, held_y))
    )
    weight = _solve(tuple(a + b for a, b in zip(sums["fit"], sums["out"], strict=True)), strength) * scale
    with torch.no_grad():
        probe.linear.weight.copy_(weight[:-1].T)
        probe.linear.bias.copy_(weight[-1])
    return probe, strength


def _standardised(probe: LinearProbe, features: Features, mask: Tensor) -> Any:
    start = 0
    for batch in features.batches(1024):
        x = ((batch.mean(1) - probe.mean) / probe.deviation).double()
        yield torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1), mask[start : start + len(x)]
        start += len(x)


def _sums(probe: LinearProbe, features: Features, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    channels, classes = probe.linear.in_features + 1, probe.linear.out_features
    xx, xy = (torch.zeros(channels, width, dtype=torch.float64) for width in (channels, classes))
    start = 0
    for x, kept in _standardised(probe, features, mask):
        y = F.one_hot(labels[start : start + len(x)][kept], classes).double()
        start += len(x)
        xx += x[kept].T @ x[kept]
        xy += x[kept].T @ y
    return xx, xy


def _solve(sums: Any, strength: float) -> Tensor:
    """Weights (channels + 1, classes); the last row, the bias, is not penalised."""
    xx, xy = sums
    penalty = torch.full((len(xx),), strength * float(xx[-1, -1]), dtype=torch.float64)
    penalty[-1] = 0
    return torch.linalg.solve(xx + penalty.diag(), xy)
