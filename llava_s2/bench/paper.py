"""The cost columns of the paper's tables 5 to 10 and 14 (arXiv:2403.13043), and how each number comes about."""

from dataclasses import dataclass

_COPIED_518 = "the number of table 6's 518² row, though the scale is named 504²"
_VIT_ROW = "the ViT row of table 5 (patches of 16 pixels), though the table is DINOv2's, whose patches have 14"


@dataclass(frozen=True)
class Row:
    """A row of one of the tables.

    Attributes:
        table, model, size: where it stands. scales: the paper's, in pixels.
        giga: its #FLOPs, 10^9 multiply-accumulates. millions: its #Params; None where the table has no such column.
        backbone: what it is counted with. products: how many of attention's two products the paper's counter saw in
            this row. counted: the scales that the number is for, where they are not those named.
        note: why the row is inconsistent with what it names; rows without are.
        images_per_second: of table 14.
    """

    table: int
    model: str
    size: str
    scales: tuple[int, ...]
    giga: float
    millions: int | None
    backbone: str
    products: int = 1
    counted: tuple[int, ...] | None = None
    note: str = ""
    images_per_second: float | None = None

    @property
    def name(self) -> str:
        return f"{self.model} {self.size} " + ", ".join(f"{side}²" for side in self.scales)


_VIT_B, _VIT_L, _VIT_H = "timm:vit_base_patch16_224", "timm:vit_large_patch16_224", "timm:vit_huge_patch14_224"
_DINO_B, _DINO_L, _DINO_G = (f"timm:vit_{size}_patch14_dinov2" for size in ("base", "large", "giant"))
_CLIP_B, _CLIP_L, _CLIP_H = "open_clip:ViT-B-16", "open_clip:ViT-L-14", "open_clip:ViT-H-14"
_CLIP_g, _CLIP_G = "open_clip:ViT-g-14", "open_clip:ViT-bigG-14"
_NO_SUCH_HUGE = "no ViT-H at 224² has so many (table 8's, with the same blocks, has 164.6G)"
_GIANT_PARAMETERS = "632M is ViT-H's number of parameters"


def _dense(table: int) -> list[Row]:
    """Rows that tables 6 and 7 share: the frozen backbones of a dense task at 512²."""
    rows = []
    for model, base in (("ViT", _VIT_B), ("OpenCLIP", _CLIP_B)):
        rows += [
            Row(table, model, "Base", (512,), 105.7, 86, base, products=2),
            Row(table, model, "Base", (256, 512, 1024), 474.7, 86, base),
            Row(table, model, "Base", (256, 512, 1536), 926.7, 86, base),
        ]
    return [
        *rows,
        Row(table, "ViT", "Large", (512,), 362.1, 307, _VIT_L, products=2),
        Row(table, "ViT", "Huge", (512,), 886.2, 632, _VIT_H),
    ]


def _mllm(table: int) -> list[Row]:
    """Rows that tables 8 and 9 share."""
    third = "1 + 4 + 9 tiles of 79.4G are 1112G, 1 + 4 + 16 are 1667G: the number is for 896², which the text names too"
    return [
        Row(table, "OpenCLIP", "Large", (224,), 79.4, 304, _CLIP_L),
        Row(table, "OpenCLIP", "Large", (224, 448), 389.1, 304, _CLIP_L),
        Row(table, "OpenCLIP", "Large", (224, 448, 672), 1634, 304, _CLIP_L, counted=(224, 448, 896), note=third),
        Row(table, "OpenCLIP", "Huge", (224,), 164.6, 632, _CLIP_H),
        Row(table, "OpenCLIP", "big-G", (224,), 473.4, 1012, _CLIP_G, note="1012M is ViT-g's number of parameters"),
    ]


ROWS: tuple[Row, ...] = (
    Row(5, "ViT", "Base", (224,), 17.6, 86, _VIT_B, products=2),
    Row(5, "ViT", "Base", (224, 448), 88.1, 86, _VIT_B, products=2),
    Row(5, "ViT", "Base", (224, 448, 672), 246.0, 86, _VIT_B, products=2),
    Row(5, "ViT", "Large", (224,), 61.6, 307, _VIT_L, products=2),
    Row(5, "ViT", "Huge", (224,), 204.9, 632, _VIT_H, products=2, note=_NO_SUCH_HUGE),
    Row(5, "DINOv2", "Base", (224,), 22.6, 86, _DINO_B),
    Row(5, "DINOv2", "Base", (224, 448), 112.8, 86, _DINO_B),
    Row(5, "DINOv2", "Base", (224, 448, 672), 315.9, 86, _DINO_B),
    Row(5, "DINOv2", "Large", (224,), 79.4, 303, _DINO_L),
    Row(5, "DINOv2", "Large", (224, 448), 397.1, 303, _DINO_L),
    Row(5, "DINOv2", "Giant", (224,), 295.4, 632, _DINO_G, note=_GIANT_PARAMETERS),
    Row(5, "OpenCLIP", "Base", (224,), 17.6, 86, _CLIP_B, products=2),
    Row(5, "OpenCLIP", "Base", (224, 448), 86.1, 86, _CLIP_B),
    Row(5, "OpenCLIP", "Base", (224, 448, 672), 241.0, 86, _CLIP_B),
    Row(5, "OpenCLIP", "Large", (224,), 79.4, 303, _CLIP_L),
    Row(5, "OpenCLIP", "Large", (224, 448), 397.1, 303, _CLIP_L),
    Row(5, "OpenCLIP", "Giant", (224,), 263.4, 1012, _CLIP_g),
    *_dense(6),
    Row(6, "DINOv2", "Base", (518,), 134.4, 86, _DINO_B),
    Row(6, "DINOv2", "Base", (518, 1036), 671.8, 86, _DINO_B),
    Row(6, "DINOv2", "Base", (518, 1036, 1554), 1881, 86, _DINO_B),
    Row(6, "DINOv2", "Large", (518,), 460.9, 303, _DINO_L),
    Row(6, "DINOv2", "Giant", (518,), 1553, 632, _DINO_G, products=0, note=_GIANT_PARAMETERS),
    Row(6, "OpenCLIP", "Large", (518,), 460.9, 303, _CLIP_L),
    Row(6, "OpenCLIP", "Huge", (518,), 940.2, 632, _CLIP_H),
    *_dense(7),
    Row(7, "DINOv2", "Base", (504,), 134.4, 86, _DINO_B, counted=(518,), note=_COPIED_518),
    Row(7, "DINOv2", "Base", (504, 1008), 671.8, 86, _DINO_B, counted=(518, 1036), note=_COPIED_518),
    Row(7, "DINOv2", "Base", (504, 1008, 1512), 1881, 86, _DINO_B, counted=(518, 1036, 1554), note=_COPIED_518),
    Row(7, "DINOv2", "Large", (504,), 460.9, 303, _DINO_L, counted=(518,), note=_COPIED_518),
    Row(7, "DINOv2", "Large", (504, 1008), 2170, 303, _DINO_L),
    Row(
        7, "DINOv2", "Giant", (504,), 1553, 632, _DINO_G, products=0, counted=(518,),
        note=f"{_COPIED_518}; {_GIANT_PARAMETERS}",
    ),
    Row(7, "OpenCLIP", "Large", (504,), 460.9, 303, _CLIP_L, counted=(518,), note=_COPIED_518),
    Row(7, "OpenCLIP", "Huge", (504,), 940.2, 632, _CLIP_H, counted=(518,), note=_COPIED_518),
    *_mllm(8),
    *_mllm(9),
    Row(10, "MVP", "Base", (224,), 17.5, 86, _VIT_B, products=2),
    Row(10, "MVP", "Base", (224, 448), 87.9, 86, _VIT_B, products=2),
    Row(10, "MVP", "Large", (224,), 61.6, 307, _VIT_L, products=2),
    Row(14, "DINOv2", "Base", (224,), 17.6, None, _VIT_B, 2, note=_VIT_ROW, images_per_second=138.5),
    Row(14, "DINOv2", "Base", (224, 448), 88.1, None, _VIT_B, 2, note=_VIT_ROW, images_per_second=39.5),
    Row(14, "DINOv2", "Base", (224, 448, 672), 246.0, None, _VIT_B, 2, note=_VIT_ROW, images_per_second=16.5),
    Row(14, "DINOv2", "Large", (224,), 61.6, None, _VIT_L, 2, note=_VIT_ROW, images_per_second=54.5),
    Row(
        14, "DINOv2", "Giant", (224,), 204.9, None, _VIT_H, 2, images_per_second=17.2,
        note=f"the row of table 5's ViT Huge; {_NO_SUCH_HUGE}",
    ),
    Row(14, "DINOv2", "Base", (518,), 134.4, None, _DINO_B, images_per_second=34.9),
    Row(14, "DINOv2", "Base", (518, 1036), 671.8, None, _DINO_B, images_per_second=7.7),
    Row(14, "DINOv2", "Base", (518, 1036, 1554), 1881, None, _DINO_B, images_per_second=2.7),
    Row(14, "DINOv2", "Large", (518,), 460.9, None, _DINO_L, images_per_second=11.8),
    Row(14, "DINOv2", "Giant", (518,), 1553, None, _DINO_G, products=0, images_per_second=3.8),
)  # fmt: skip
"""Every row with a #FLOPs column, in the paper's order but for the order of families in tables 6 and 7."""
