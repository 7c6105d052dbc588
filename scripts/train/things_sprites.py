"""Draws the sprite atlases of the embedded default from free emoji sets, one WebP file a style.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/noto@1.2.9 \\
        @iconify-json/twemoji@1.2.5 @iconify-json/emojione@1.2.3 @iconify-json/fxemoji@1.2.2 \\
        @iconify-json/streamline-emojis@1.2.4
    for f in *.tgz; do mkdir -p ${f%.tgz}; tar xzf $f -C ${f%.tgz} --strip-components=1; done
    python scripts/train/things_sprites.py --packages . --output llava_s2/synthetic/sprites

An atlas is a square grid of cells of 72 x 72 pixels; ``index.json`` lists what stands in each cell, in order. The
licence of each set stands in NOTICE. ``resvg-py`` draws the vector graphics.
"""

import argparse
import io
import json
import math
from pathlib import Path

import resvg_py
from PIL import Image

from llava_s2.synthetic.thing_names import NAMES

CELL = 72
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Style -> the unpacked package's folder, without its version.
VECTOR_STYLES = {
    "fluent_flat": "iconify-json-fluent-emoji-flat",
    "noto": "iconify-json-noto",
    "twemoji": "iconify-json-twemoji",
    "emojitwo": "iconify-json-emojione",
    "streamline": "iconify-json-streamline-emojis",
    "fxemoji": "iconify-json-fxemoji",
}
# What FxEmoji, whose names are its own, calls these.
FX = {
    "🐕": "dogside", "🐶": "dog", "🐈": "catside", "🐱": "cat",
    "🐁": "mouseside", "🐭": "mouse", "🐇": "bunnyside", "🐰": "bunny",
}  # fmt: skip


def fit(image: Image.Image) -> Image.Image:
    """The image cut to what it shows and fitted into a cell, centred."""
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    image = image.crop(box)
    scale = CELL / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    return cell


class IconSet:
    """An Iconify package: vector graphics by name."""

    def __init__(self, folder: Path, unicode_names: dict[str, str], own_names: dict[str, str]) -> None:
        data = json.loads((folder / "icons.json").read_text())
        self.data, self.unicode_names, self.own_names = data, unicode_names, own_names
        self.width, self.height = data.get("width", 16), data.get("height", 16)
        self.by_name = dict(data["icons"])
        for alias, entry in data.get("aliases", {}).items():
            if entry.keys() == {"parent"} and entry["parent"] in data["icons"]:
                self.by_name.setdefault(alias, data["icons"][entry["parent"]])
        for name, entry in list(self.by_name.items()):
            self.by_name.setdefault(name.replace("-", ""), entry)

    def draw(self, character: str) -> Image.Image | None:
        """The character's sprite, or None where the set has none."""
        name = self.unicode_names.get(f"{ord(character):x}")
        candidates = [self.own_names.get(character)]
        if name:
            candidates += [name, name + "-1", name.replace("-", "")]
        icon = next((self.by_name[c] for c in candidates if c in self.by_name), None)
        if icon is None:
            return None
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        head = f'xmlns="{SVG}" xmlns:xlink="{XLINK}" viewBox="0 0 {width} {height}"'
        svg = f"<svg {head}>{icon['body']}</svg>"
        drawn = resvg_py.svg_to_bytes(svg_string=svg, width=4 * CELL, height=4 * CELL)
        return fit(Image.open(io.BytesIO(bytes(drawn))))


class ImageSet:
    """The Fluent 3D package: images named by code point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "assets"

    def draw(self, character: str) -> Image.Image | None:
        """The character's sprite, or None where the set has none."""
        for name in (f"{ord(character):x}", f"{ord(character):x}-fe0f"):
            if (self.folder / f"{name}.webp").exists():
                return fit(Image.open(self.folder / f"{name}.webp"))
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder with the unpacked packages")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--quality", type=int, default=75)
    args = parser.parse_args()

    def package(name: str) -> Path:
        return next(path for path in sorted(args.packages.glob(name + "-*")) if path.is_dir())

    unicode_names = json.loads((package("iconify-json-noto") / "chars.json").read_text())
    sets: dict[str, IconSet | ImageSet] = {"fluent_3d": ImageSet(package("lobehub-fluent-emoji-3d"))}
    for style, name in VECTOR_STYLES.items():
        sets[style] = IconSet(package(name), unicode_names, FX if style == "fxemoji" else {})
    args.output.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[str]] = {}
    for style, icons in sets.items():
        drawn = [(word, icons.draw(c)) for word, characters in NAMES.items() for c in characters]
        found = [(word, image) for word, image in drawn if image is not None]
        missing = sorted(set(NAMES) - {word for word, _ in found})
        print(f"{style}: {len(found)} sprites, {len(NAMES) - len(missing)} of {len(NAMES)} names; without {missing}")
        columns = math.ceil(math.sqrt(len(found)))
        atlas = Image.new("RGBA", (columns * CELL, math.ceil(len(found) / columns) * CELL))
        for i, (_, image) in enumerate(found):
            atlas.paste(image, (i % columns * CELL, i // columns * CELL))
        atlas.save(args.output / f"{style}.webp", quality=args.quality, alpha_quality=70, method=4)
        index[style] = [word for word, _ in found]
    (args.output / "index.json").write_text(json.dumps(index, indent=0) + "\n")


if __name__ == "__main__":
    main()
