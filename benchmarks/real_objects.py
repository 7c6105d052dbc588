"""What the embedded default makes of real things, of which it has seen none: photographic cut-outs on photographs.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
    python benchmarks/real_objects.py --stamps stamps --output playground/real_objects [--model embedded]

The cut-outs are Tux Paint's (GPL-2, shipped nowhere here): those whose description ends in one of the 150 names. They
stand on the test split's photographs, as large as in the quickstart, and are asked for as there: which of these four
is in the image? Photographs and cartoons among them are not told apart, because Tux Paint does not.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from llava_s2.cli import main as llava_s2
from llava_s2.synthetic.scene_files import save
from llava_s2.synthetic.scene_questions import naming_questions
from llava_s2.synthetic.scenes import Scene, SceneConfig, Thing, background, lay_out
from llava_s2.synthetic.sprites import paste
from llava_s2.synthetic.thing_names import NAMES

CONFIG = SceneConfig(side=(1000, 1400))


def find_stamps(folder: Path) -> dict[str, list[Path]]:
    """Cut-outs by name."""
    found: dict[str, list[Path]] = {}
    for text in sorted(folder.rglob("*.txt")):
        words = text.read_text(errors="replace").splitlines()[0].lower().strip(" .!").replace("-", " ").split()
        if words and words[-1] in NAMES and text.with_suffix(".png").exists():
            found.setdefault(words[-1], []).append(text.with_suffix(".png"))
    return found


def draw(stamps: dict[str, list[Path]], seed: int) -> Scene:
    """A photograph with three to six cut-outs."""
    rng = np.random.default_rng([23, seed])
    image = background("test", CONFIG, rng)
    things = []
    for thing in lay_out("test", image.size, list(stamps), CONFIG, rng):
        files = stamps[thing.name]
        stamp = Image.open(files[int(rng.integers(len(files)))]).convert("RGBA")
        stamp = stamp.crop(stamp.getchannel("A").getbbox())
        things.append(
            Thing(thing.name, thing.color, paste(image, stamp, int(thing.x), int(thing.y), thing.box[2] - thing.box[0]))
        )
    return Scene(image, tuple(things), tuple(stamps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stamps", type=Path, required=True, help="the unpacked Debian package")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--questions", type=int, default=150)
    args = parser.parse_args()
    stamps, data = find_stamps(args.stamps), args.output / "vstar"
    print(f"{sum(map(len, stamps.values()))} cut-outs of {len(stamps)} names")
    for category in ("direct_attributes", "relative_position"):
        (data / category).mkdir(parents=True, exist_ok=True)
    for seed in range(args.questions):
        scene = draw(stamps, seed)
        questions = naming_questions(scene, np.random.default_rng(seed))
        question = questions[seed % len(questions)]
        file = data / "direct_attributes" / f"{seed:06d}.jpg"
        save(scene.image, file)
        file.with_suffix(".json").write_text(json.dumps({"question": question.text, "options": question.options}))
    llava_s2(["eval", "vstar", "--model", args.model, "--data", str(data), "--output", str(args.output / "run")])


if __name__ == "__main__":
    main()
