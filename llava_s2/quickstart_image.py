"""Draws a question about an image, what each model sees of the object that it asks for, and what each answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from llava_s2.files import atomic_write

_WIDTH, _CROP, _MARGIN = 900, 300, 24
_INK, _RIGHT, _WRONG = (30, 30, 30), (24, 120, 50), (190, 30, 30)


def draw_answers(path: Path, image: Path, record: Mapping[str, Any], answers: Mapping[tuple[int, ...], str]) -> None:
    """Writes a PNG: the image with the object framed, and for each model the part around it at its largest scale.

    Args:
        record: V*'s annotation, with ``question``, ``options`` (the correct one first) and ``bbox`` in pixels.
        answers: of each model its scales in pixels, ascending, and its answer.
    """
    whole = Image.open(image).convert("RGB")
    longer = max(whole.size)
    left, top, width, height = record["bbox"][0]
    factor = _WIDTH / whole.width
    small = whole.resize((_WIDTH, round(whole.height * factor)), Image.Resampling.LANCZOS)
    frame = [(left - width / 2) * factor, (top - height / 2) * factor]
    frame += [(left + 1.5 * width) * factor, (top + 1.5 * height) * factor]
    ImageDraw.Draw(small).rectangle(frame, outline=(255, 40, 40), width=4)

    height_needed = max(small.height, len(answers) * (_CROP + 60)) + 130
    canvas = Image.new("RGB", (_WIDTH + _CROP + 3 * _MARGIN, height_needed), "white")
    canvas.paste(small, (_MARGIN, _MARGIN))
    draw = ImageDraw.Draw(canvas)
    x, y = (left + width / 2, top + height / 2)
    reach = 1.5 * max(width, height)
    box = [min(max(at - reach, 0), extent - 2 * reach) for at, extent in zip((x, y), whole.size, strict=True)]
    for row, (scales, answer) in enumerate(answers.items()):
        scale = scales[-1] / longer
        seen = whole.resize([max(1, round(side * scale)) for side in whole.size], Image.Resampling.BICUBIC)
        part = tuple(value * scale for value in (box[0], box[1], box[0] + 2 * reach, box[1] + 2 * reach))
        crop = seen.resize((_CROP, _CROP), Image.Resampling.NEAREST, box=part)
        at = (_WIDTH + 2 * _MARGIN, _MARGIN + row * (_CROP + 60))
        canvas.paste(crop, at)
        draw.text((at[0], at[1] + _CROP + 4), f"scales {','.join(map(str, scales))}", _INK, ImageFont.load_default(18))
        color = _RIGHT if answer == record["options"][0] else _WRONG
        draw.text((at[0], at[1] + _CROP + 26), answer, color, ImageFont.load_default(20))
    draw.text((_MARGIN, canvas.height - 90), record["question"], _INK, ImageFont.load_default(26))
    size = f"{whole.width} x {whole.height} pixels, the framed object {width} x {height}"
    draw.text((_MARGIN, canvas.height - 50), size, _INK, ImageFont.load_default(18))
    with atomic_write(path) as partial:
        canvas.save(partial, "PNG")
