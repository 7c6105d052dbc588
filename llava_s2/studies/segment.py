"""``llava-s2 study segment``: semantic segmentation on a frozen tower (tables 6, 12 and 13, figures 2d-f, 6 and 8b)."""

import argparse
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from llava_s2.studies.dense_backbone import S2Backbone
from llava_s2.studies.dense_data import load_masks
from llava_s2.studies.dense_metrics import IGNORED, MeanIoU
from llava_s2.studies.dense_study import DenseTask, StockModel, run_dense
from llava_s2.studies.feature_cache import ScaleSetting
from llava_s2.studies.paper_tables import paper_score

_ADE20K = (20_210, 2_000, 150)  # images to train, images to test, classes


def run(args: argparse.Namespace) -> None:
    """Runs the study; see ``llava-s2 study segment --help``."""
    sets, classes = load_masks(args.data, args.limit)
    found = (len(sets["train"]), len(sets["val"]), classes)
    as_in_paper = found == _ADE20K and args.head == "mask2former" and not args.full_resolution

    def paper(tower: str, setting: ScaleSetting) -> float | None:
        table = 12 if not setting.split else 13 if setting.merge == "add" else 6
        return paper_score(table, tower, setting.scales) if as_in_paper else None

    task = DenseTask(
        name="segment",
        score="mIoU %",
        head=lambda channels: nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, classes, 1)),
        loss=partial(F.cross_entropy, ignore_index=IGNORED),
        decode=lambda logits: logits.argmax(0).numpy(),
        metric=lambda: MeanIoU(classes),
        paper=paper,
        stock={"upernet": partial(_upernet, classes), "mask2former": partial(_mask2former, classes)}.get(args.head),
    )
    run_dense(args, task, sets, {"classes": classes})


def _upernet(classes: int, backbone: S2Backbone) -> StockModel:
    config: Any = UperNetConfig(
        backbone_config=backbone.config, loss_ignore_index=IGNORED, auxiliary_in_channels=backbone.channels[2]
    )
    config.num_labels = classes
    model: Any = UperNetForSemanticSegmentation(config)
    model.backbone = backbone
    return StockModel(
        model,
        loss=lambda images, truth: model(images, labels=truth).loss,
        predict=lambda images: model(images).logits,
    )


def _mask2former(classes: int, backbone: S2Backbone) -> StockModel:
    config: Any = Mask2FormerConfig(backbone_config=backbone.config)
    config.num_labels = classes
    model: Any = Mask2FormerForUniversalSegmentation(config)
    model.model.pixel_level_module.encoder = backbone

    def loss(images: Tensor, truth: Tensor) -> Tensor:
        """Every class that an image holds is one mask of it."""
        present = [[label for label in mask.unique().tolist() if label != IGNORED] for mask in truth]
        masks = [
            torch.stack([mask == label for label in [*labels, IGNORED]])[:-1].float()  # also where there is none
            for mask, labels in zip(truth, present, strict=True)
        ]
        labels = [torch.tensor(found, dtype=torch.long, device=truth.device) for found in present]
        return model(images, mask_labels=masks, class_labels=labels).loss

    def predict(images: Tensor) -> Tensor:
        """The scores of the classes at every position: masks, weighted by what they are of."""
        out = model(images)
        classes_of_masks = out.class_queries_logits.softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes_of_masks, out.masks_queries_logits.sigmoid())

    return StockModel(model, loss, predict)
