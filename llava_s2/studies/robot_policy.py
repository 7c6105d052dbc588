"""A transformer that imitates: what was seen, felt and done in the last 16 steps to the actions of the next 16."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from llava_s2.studies.feature_cache import Features
from llava_s2.studies.robot_demos import Demos
from llava_s2.studies.training_loop import train

STEPS = 16


class Policy(nn.Module):
    """Behaviour cloning's policy. It is given the mean and deviation of states and actions, and standardises itself.

    Args:
        positions, channels: of the visual features of a step.
    """

    def __init__(self, positions: int, channels: int, states: int, actions: int, width: int = 128) -> None:
        super().__init__()
        self.compress = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 16), nn.GELU(), nn.Flatten(2))
        self.embed = nn.Linear(16 * positions + states + actions, width)
        self.place = nn.Parameter(0.02 * torch.randn(STEPS, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.act = nn.Linear(width, STEPS * actions)
        self.state_mean: Tensor
        self.state_deviation: Tensor
        self.action_mean: Tensor
        self.action_deviation: Tensor
        for name, size in (("state", states), ("action", actions)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_deviation", torch.ones(size))

    def standardise(self, states: Tensor, actions: Tensor) -> None:
        """Takes mean and deviation from the demonstrations."""
        for name, values in (("state", states), ("action", actions)):
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_deviation").copy_(values.std(0).clamp_min(1e-3))

    def forward(self, features: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """The next actions (B, STEPS, A).

        Args:
            features: (B, STEPS, positions, channels) of the last steps, this one last.
            states: (B, STEPS, S). actions: (B, STEPS, A), those before each step; of before the start, 0.
        """
        states = (states - self.state_mean) / self.state_deviation
        actions = (actions - self.action_mean) / self.action_deviation
        x = self.embed(torch.cat([self.compress(features), states, actions], dim=-1)) + self.place
        out = self.act(self.encoder(x)[:, -1]).unflatten(1, (STEPS, -1))
        return out * self.action_deviation + self.action_mean


def windows(demos: Demos) -> tuple[np.ndarray, np.ndarray]:
    """For every step, the indices of the last STEPS and of the next STEPS, this one in both; a demonstration's first
    and last step stand for those beyond it."""
    ends = [*demos.starts[1:], len(demos.actions)]
    past, future = [], []
    for start, end in zip(demos.starts, ends, strict=True):
        for step in range(start, end):
            past.append(np.maximum(np.arange(step - STEPS + 1, step + 1), start))
            future.append(np.minimum(np.arange(step, step + STEPS), end - 1))
    return np.stack(past), np.stack(future)


def before(demos: Demos) -> np.ndarray:
    """The action that was taken before each step; 0 before a demonstration's first."""
    shifted = np.concatenate([np.zeros_like(demos.actions[:1]), demos.actions[:-1]])
    shifted[demos.starts] = 0
    return shifted


def imitate(
    demos: Demos, features: Features, *, epochs: int, rate: float, batch: int, seed: int, file: Path
) -> tuple[Policy, float]:
    """Trains a policy on demonstrations and the features of their images; also gives the last epoch's loss."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    visual = features[np.arange(len(features))]
    policy = Policy(visual.shape[1], visual.shape[2], demos.states.shape[1], demos.actions.shape[1]).to(device)
    states, actions, last = (torch.from_numpy(a).to(device) for a in (demos.states, demos.actions, before(demos)))
    policy.standardise(states, actions)
    past, future = windows(demos)

    def loss(index: Tensor) -> Tensor:
        seen, next_ones = past[index.numpy()], torch.from_numpy(future[index.numpy()])
        predicted = policy(visual[torch.from_numpy(seen)].to(device), states[seen], last[seen])
        return ((predicted - actions[next_ones]) / policy.action_deviation).square().mean()

    losses = train(policy, loss, len(past), epochs=epochs, rate=rate, batch=batch, seed=seed, file=file, name="imitate")
    return policy, losses[-1]
