"""The scores of the paper's tables 2 to 7, 10, 12 and 13 (arXiv:2403.13043)."""

import re

_B, _L, _H = "Base", "Large", "Huge"
_FAMILIES: tuple[tuple[str, str], ...] = (
    # Trained on the data that the paper names: ImageNet-21k, LVD-142M, LAION-2B, ImageNet-1k without labels.
    ("ViT", r"timm:vit_(base|large|huge)_patch1[46]_224\.(?:augreg|orig)_in21k"),
    ("ViT", r"google/vit-(base|large|huge)-patch1[46]-224-in21k"),
    ("DINOv2", r"timm:vit_(base|large|giant)_patch14_dinov2\.lvd142m"),
    ("DINOv2", r"facebook/dinov2-(base|large|giant)"),
    ("OpenCLIP", r"open_clip:ViT-(B-16|L-14|H-14|g-14|bigG-14)/laion2b_\w+"),
    ("MAE", r"facebook/vit-mae-(base|large|huge)"),
    ("MAE", r"mae:.*mae_pretrain_vit_(base|large|huge)\.pth"),
    ("MVP", r"mae:.*(?:mae_pretrain_hoi_|mvp_?)vit_?(base|large)[^/]*"),
)
_SIZES = {"B-16": _B, "L-14": _L, "H-14": _H, "g-14": "Giant", "bigG-14": "big-G"}

TABLES: dict[int, dict[tuple[str, str, tuple[int, ...]], float]] = {
    5: {  # ImageNet, accuracy in per cent
        ("ViT", _B, (224,)): 80.3,
        ("ViT", _B, (224, 448)): 81.1,
        ("ViT", _B, (224, 448, 672)): 81.4,
        ("ViT", _L, (224,)): 81.6,
        ("ViT", _H, (224,)): 77.3,
        ("DINOv2", _B, (224,)): 84.5,
        ("DINOv2", _B, (224, 448)): 85.2,
        ("DINOv2", _B, (224, 448, 672)): 85.7,
        ("DINOv2", _L, (224,)): 86.3,
        ("DINOv2", _L, (224, 448)): 86.6,
        ("DINOv2", "Giant", (224,)): 86.5,
        ("OpenCLIP", _B, (224,)): 76.0,
        ("OpenCLIP", _B, (224, 448)): 76.7,
        ("OpenCLIP", _B, (224, 448, 672)): 77.1,
        ("OpenCLIP", _L, (224,)): 80.4,
        ("OpenCLIP", _L, (224, 448)): 79.6,
        ("OpenCLIP", "Giant", (224,)): 83.8,
    },
    6: {  # ADE20k, mIoU in per cent
        ("ViT", _B, (512,)): 44.4,
        ("ViT", _B, (256, 512, 1024)): 47.8,
        ("ViT", _B, (256, 512, 1536)): 48.0,
        ("ViT", _L, (512,)): 44.9,
        ("ViT", _H, (512,)): 43.4,
        ("DINOv2", _B, (518,)): 54.8,
        ("DINOv2", _B, (518, 1036)): 56.3,
        ("DINOv2", _B, (518, 1036, 1554)): 56.9,
        ("DINOv2", _L, (518,)): 55.1,
        ("DINOv2", "Giant", (518,)): 55.5,
        ("OpenCLIP", _B, (512,)): 49.2,
        ("OpenCLIP", _B, (256, 512, 1024)): 52.2,
        ("OpenCLIP", _B, (256, 512, 1536)): 52.6,
        ("OpenCLIP", _L, (518,)): 50.3,
        ("OpenCLIP", _H, (518,)): 51.3,
    },
    7: {  # NYUv2, RMSE in metres
        ("ViT", _B, (512,)): 0.5575,
        ("ViT", _B, (256, 512, 1024)): 0.5127,
        ("ViT", _B, (256, 512, 1536)): 0.5079,
        ("ViT", _L, (512,)): 0.5084,
        ("ViT", _H, (512,)): 0.5611,
        ("DINOv2", _B, (504,)): 0.3160,
        ("DINOv2", _B, (504, 1008)): 0.2995,
        ("DINOv2", _B, (504, 1008, 1512)): 0.2976,
        ("DINOv2", _L, (504,)): 0.2696,
        ("DINOv2", _L, (504, 1008)): 0.2584,
        ("DINOv2", "Giant", (504,)): 0.2588,
        ("OpenCLIP", _B, (512,)): 0.4769,
        ("OpenCLIP", _B, (256, 512, 1024)): 0.4107,
        ("OpenCLIP", _B, (256, 512, 1536)): 0.3959,
        ("OpenCLIP", _L, (504,)): 0.4436,
        ("OpenCLIP", _H, (504,)): 0.3939,
    },
    10: {  # picking a cube with a robot's arm, success in per cent
        ("MVP", _B, (224,)): 43.8,
        ("MVP", _B, (224, 448)): 62.5,
        ("MVP", _L, (224,)): 50.0,
    },
    12: {  # ADE20k, whole images in place of tiles
        ("DINOv2", _B, (518, 1036)): 55.7,
    },
    13: {  # ADE20k, scales added in place of concatenated
        ("DINOv2", _B, (518, 1036, 1536)): 55.7,
        ("OpenCLIP", _B, (256, 512, 1024)): 51.4,
    },
}

RECONSTRUCTION: dict[tuple[str, str, str, bool], tuple[float, float]] = {
    # Table 2: (family, target, source, several scales) -> information in bits on the training and the test images.
    ("ViT", _L, _B, False): (0.440, 0.524),
    ("ViT", _L, _B, True): (0.521, 0.601),
    ("ViT", _L, _H, False): (0.531, 0.598),
    ("MAE", _L, _B, False): (7.460, 7.840),
    ("MAE", _L, _B, True): (7.694, 7.972),
    ("MAE", _L, _H, False): (7.669, 8.169),
    ("OpenCLIP", _L, _B, False): (1.495, 1.723),
    ("OpenCLIP", _L, _B, True): (1.611, 1.830),
    ("OpenCLIP", _L, "Giant", False): (1.613, 1.900),
    ("OpenCLIP", _H, _B, False): (1.407, 1.413),
    ("OpenCLIP", _H, _B, True): (1.504, 1.505),
    ("OpenCLIP", _H, "Giant", False): (1.692, 1.749),
}


def family(tower: str) -> tuple[str, str] | None:
    """The paper's name of a tower's family and size; None for a tower that the paper does not have."""
    for name, pattern in _FAMILIES:
        if found := re.fullmatch(pattern, tower):
            return name, _SIZES.get(found[1], found[1].capitalize())
    return None


def paper_score(table: int, tower: str, scales: tuple[int, ...]) -> float | None:
    """The score of a row of one of `TABLES`; None where the paper has no such row."""
    known = family(tower)
    return TABLES[table].get((*known, scales)) if known else None


def paper_information(target: str, source: str, scales: tuple[int, ...]) -> tuple[float, float] | None:
    """Table 2's information on the training and the test images; None where the paper has no such row."""
    to, by = family(target), family(source)
    if to is None or by is None or to[0] != by[0]:
        return None
    return RECONSTRUCTION.get((to[0], to[1], by[1], len(scales) > 1))
