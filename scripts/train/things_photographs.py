"""Copies the photographs that stand behind the embedded default's small things, as JPEG.

    apt-get download lomiri-wallpapers-16.04 && dpkg -x lomiri-wallpapers-16.04_*.deb wallpapers
    python scripts/train/things_photographs.py --wallpapers wallpapers --output llava_s2/synthetic/photographs
    python scripts/train/things_photographs.py --wallpapers wallpapers --output PHOTOGRAPHS --all

The package ships those of ``SHIPPED``; ``--all`` adds those that only the tower was trained on. All are CC0, CC-BY or
in the public domain; NOTICE names authors and licences. The rest comes from scikit-image, scikit-learn and
matplotlib.
"""

import argparse
import importlib.util
from pathlib import Path

from PIL import Image

# Split -> file name -> where it comes from.
SHIPPED = {
    "train": {
        "stream": "life_by_Aitzol_Berasategi.jpg",
        "mountains": "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "bowl": "Picture_0B_by_freespace.jpg",
        "brushes": "Picture_1A_by_freespace.jpg",
        "room": "Wine_by_Jakkub_Mede.jpg",
        "pagoda": "sklearn/datasets/images/china.jpg",
        "dahlia": "sklearn/datasets/images/flower.jpg",
        "cup": "skimage/data/coffee.png",
        "launchpad": "skimage/data/rocket.jpg",
    },
    "test": {
        "meadow": "aitzgorri_by_Aitzol_Berasategi.jpg",
        "dandelions": "seeding_by_Clements_Engelhardt.jpg",
        "sunset": "sunset_by_Aitzol_Berasategi.jpg",
    },
}
TOWER_ONLY = {
    "colors": "umang_by_Abhishek_Mudgal.jpg",
    **{
        name.partition(".")[0]: f"skimage/data/{name}"
        for name in (
            *("astronaut.png", "chelsea.png", "hubble_deep_field.jpg", "motorcycle_left.png", "ihc.png", "retina.jpg"),
            *("brick.png", "grass.png", "gravel.png", "coins.png"),
        )
    },
    "portrait": "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
}


def find(source: str, wallpapers: Path) -> Path:
    """The file of a package or of the unpacked Debian package."""
    package, slash, rest = source.partition("/")
    if not slash:
        return wallpapers / "usr/share/backgrounds" / source
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install scikit-image scikit-learn matplotlib")
    return Path(spec.origin).parent / rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wallpapers", type=Path, required=True, help="the unpacked Debian package")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--all", action="store_true", help="with those that only the tower was trained on")
    args = parser.parse_args()
    for split, sources in SHIPPED.items():
        (args.output / split).mkdir(parents=True, exist_ok=True)
        for name, source in {**sources, **(TOWER_ONLY if args.all and split == "train" else {})}.items():
            image = Image.open(find(source, args.wallpapers)).convert("RGB")
            image.thumbnail((1024, 1024), Image.Resampling.LANCZOS)
            image.save(args.output / split / f"{name}.jpg", quality=70, optimize=True)


if __name__ == "__main__":
    main()
