"""Training that a stop does not undo: the order of the images and all randomness follow from the seed and the step."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llava_s2.files import atomic_write

_SAVE_SECONDS = 60.0


def checkpoint_file(cache: Path, study: str, *of: Any) -> Path:
    """The checkpoint of a training of a study; `of` is everything that the training depends on."""
    key = hashlib.blake2b(json.dumps(of, default=str).encode(), digest_size=12).hexdigest()
    return cache / f"{study}-{key}.pt"


def train(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    *,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
    file: Path,
    optimizer: str = "adamw",
    weight_decay: float = 0.01,
    name: str = "train",
) -> list[float]:
    """Trains the parameters of `model` that require gradients, with a cosine schedule.

    Args:
        loss_of: the loss of the examples of these indices (n).
        count: examples. rate: learning rate at the start. optimizer: "adamw", or "sgd" with momentum 0.9.
        file: checkpoint. It is written once a minute and gone on with; the caller deletes it when it has its result.

    Returns:
        The mean loss of every epoch.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optimizer == "sgd":
        stepper: Any = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    else:
        stepper = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay)
    per_epoch = -(-count // batch)
    steps = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, steps)
    done, losses = 0, [0.0] * epochs
    if file.exists():
        saved = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"], strict=False)
        stepper.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        done, losses = saved["done"], saved["losses"]
    saved_at = monotonic()
    model.train()
    order = torch.empty(0, dtype=torch.long)
    with tqdm(total=steps, initial=done, desc=name, unit="step") as bar:
        for step in range(done, steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or step == done:
                order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
            torch.manual_seed(seed * 1_000_003 + step)  # dropout and augmentation
            loss = loss_of(order[place * batch : (place + 1) * batch])
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            schedule.step()
            losses[epoch] += float(loss.detach()) / per_epoch
            bar.update()
            if monotonic() - saved_at > _SAVE_SECONDS:
                frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
                state = {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
                with atomic_write(file) as partial:
                    torch.save(
                        {
                            "model": state,
                            "optimizer": stepper.state_dict(),
                            "schedule": schedule.state_dict(),
                            "done": step + 1,
                            "losses": losses,
                        },
                        partial,
                    )
                saved_at = monotonic()
    model.eval()
    return losses
