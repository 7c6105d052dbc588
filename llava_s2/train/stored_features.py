"""The features of a frozen tower, computed once an image and kept on disk, for small sets and many epochs."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_s2.data.dataset import ConversationDataset
from llava_s2.data.pixels import Normalizer
from llava_s2.errors import InputError
from llava_s2.s2 import S2VisionModel


class StoredTower(S2VisionModel):
    """An S² tower that hands on features which it is given in place of images, (images, tokens, channels)."""

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        if pixel_values.dim() == 3:
            return BaseModelOutputWithPooling(last_hidden_state=pixel_values, hidden_states=(pixel_values,))
        return super().forward(pixel_values, **kwargs)


class StoredFeatures:
    """The features of a record's images, (images, tokens, channels) in the dtype in which the tower gave them.

    Args:
        folder: of `store_features`.
        keys: of each record's images.
    """

    def __init__(self, folder: Path, keys: dict[int, list[str]]) -> None:
        self._folder, self._keys = folder, keys

    def __contains__(self, index: int) -> bool:
        return index in self._keys

    def __getitem__(self, index: int) -> Tensor:
        return torch.stack([self._read(_file(self._folder, key)) for key in self._keys[index]])

    def _read(self, file: Path) -> Tensor:
        try:
            return load_file(file)["features"]
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: stored features cannot be read ({error}); delete it and start again") from None


def store_features(
    model: LlavaForConditionalGeneration,
    dataset: ConversationDataset,
    folder: Path,
    limit: float,
    training: TrainingArguments,
) -> StoredFeatures:
    """Runs the tower on every image of a data set whose features are not in ``folder``, and puts a `StoredTower` in.

    A file is named by what its features depend on: the image as the tower gets it, the tower's weights and config,
    and the precision. Every process takes its share of the records. A file appears whole or not at all; a run that was
    cut off goes on. Records whose images cannot be read are left out: training tells of them.

    Args:
        limit: bytes that the folder may take.

    Raises:
        InputError: the model's tower is no S² tower, or the features do not fit into the limit or on the disk.
    """
    if not isinstance(model.model.vision_tower, S2VisionModel):
        raise InputError("--cache_tower_features: the model has no S2 tower; name the scales with --s2_scales")
    tower: Any = model.model.vision_tower
    normalize = Normalizer(dataset.processor.image_processor)
    half = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    salt = _fingerprint(tower, normalize, half)
    mine = range(training.process_index, len(dataset), training.world_size)
    batches: Any = DataLoader(
        _Images(dataset, mine),
        batch_size=None,
        num_workers=training.dataloader_num_workers,
        generator=torch.Generator(),  # the run's own numbers stay as they are without a cache
    )
    keys: dict[int, list[str]] = {}
    used = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    was_on = tower.device
    tower.to(training.device)
    autocast = torch.autocast(training.device.type, dtype=half, enabled=half is not None)
    with torch.no_grad(), autocast, tqdm(batches, desc="tower features", disable=training.process_index > 0) as bar:
        for index, pixels in bar:
            if pixels is None:
                continue
            keys[index] = [hashlib.sha256(salt + image.numpy().tobytes()).hexdigest() for image in pixels]
            for key, image in zip(keys[index], pixels, strict=True):
                if not _file(folder, key).exists():
                    features = tower.eval()(normalize(image[None].to(training.device))).last_hidden_state
                    used += features.nbytes
                    if used > limit:
                        raise InputError(_too_much(folder, limit, features.nbytes, dataset))
                    _write(folder, key, features[0].cpu())
    tower.to(was_on)
    model.model.vision_tower = _as_stored(tower)
    if training.world_size > 1:
        parts: list[Any] = [None] * training.world_size
        distributed.all_gather_object(parts, keys)
        keys = {index: found for part in parts for index, found in part.items()}
    return StoredFeatures(folder, keys)


class _Images(Dataset[tuple[int, Tensor | None]]):
    """The images of the records that have some, and None where they cannot be read."""

    def __init__(self, dataset: ConversationDataset, indices: range) -> None:
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[int, Tensor | None]:
        index = self._indices[position]
        try:
            return index, self._dataset.pixels(index)
        except InputError:
            return index, None


def _as_stored(tower: S2VisionModel) -> StoredTower:
    """The same weights under the same names, so that checkpoints stay what they are."""
    with torch.device("meta"):
        stored = StoredTower(tower.config)
    stored.backbone = tower.backbone
    return stored.train(tower.training)


def _fingerprint(tower: S2VisionModel, normalize: Normalizer, half: torch.dtype | None) -> bytes:
    config = tower.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps([config, str(half)], sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    digest.update(normalize.table.cpu().numpy().data)
    return digest.digest()


def _file(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.safetensors"


def _write(folder: Path, key: str, features: Tensor) -> None:
    place = _file(folder, key)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{key}.{os.getpid()}")
    try:
        save_file({"features": features.contiguous()}, partial)
        partial.replace(place)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{place}: cannot be written ({error}); free some room, then start again") from None
    finally:
        partial.unlink(missing_ok=True)


def _too_much(folder: Path, limit: float, size: int, dataset: ConversationDataset) -> str:
    return (
        f"--cache_tower_features {folder}: full at {limit / 1e9:.1f} GB (an image takes {size / 1e6:.1f} MB, the data "
        f"has {len(dataset):,} records); raise --cache_tower_features_gb, or leave the cache out"
    )
