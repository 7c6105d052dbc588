"""What every study of labelled images does first: reads its sets, checks them, and keeps as many as were asked for."""

import argparse

import numpy as np

from llava_s2.studies.feature_cache import ImageSource, cropped
from llava_s2.studies.image_sets import ImageSet, check_images, load_image_sets, one_split


def image_splits(args: argparse.Namespace, labelled: bool = True) -> dict[str, ImageSet]:
    """The splits ``train`` and ``val`` of ``args.data``, decoded once to see that they are whole.

    Images that come without a ``val`` lose every fifth to it, where no labels are needed.

    Raises:
        InputError: a split, a label or an image is missing or broken.
    """
    sets = load_image_sets(args.data, args.val_labels)
    if labelled:
        sets = {name: one_split(sets, name, args.data) for name in ("train", "val")}
    elif set(sets) == {"train"}:
        images = sets["train"]
        out = np.random.default_rng(0).permutation(len(images)) < len(images) // 5
        sets = {"train": images.pick(np.flatnonzero(~out)), "val": images.pick(np.flatnonzero(out))}
    if args.limit:
        sets = {name: images.first(args.limit) for name, images in sets.items()}
    for images in sets.values():
        check_images(images)
    return sets


def cropped_splits(args: argparse.Namespace, labelled: bool = True) -> dict[str, ImageSource]:
    """The splits as images to extract features of."""
    return {name: cropped(images, args.crop) for name, images in image_splits(args, labelled).items() if len(images)}
