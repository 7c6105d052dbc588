"""Sets of labelled images in miniature, in their official layouts; and broken ones, told by name."""

import io
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llava_s2.errors import InputError
from llava_s2.studies.image_sets import check_images, load_image_sets, one_split

CLASSES = ["n01440764", "n01443537", "n02102040"]


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def flat(image_folder, tmp_path):
    """ImageNet with its official flat val, five images whose classes are 2, 0, 1, 1, 0."""
    root = tmp_path / "flat"
    shutil.copytree(image_folder / "train", root / "train")
    (root / "val").mkdir()
    for number in range(1, 6):
        (root / "val" / f"ILSVRC2012_val_{number:08d}.png").write_bytes(png(number))
    return root


def names(number):
    return f"ILSVRC2012_val_{number:08d}"


LABELS = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "".join(
        f"{names(n)},{CLASSES[label]} 1 2 3 4 {CLASSES[label]} 5 6 7 8\n"
        for n, label in ((3, 1), (1, 2), (2, 0), (5, 0), (4, 1))
    ),
    "val.txt": "".join(f"{names(n)}.JPEG {label}\n" for n, label in ((5, 0), (1, 2), (2, 0), (3, 1), (4, 1))),
    "synset_labels.txt": "".join(f"{CLASSES[label]}\n" for label in (2, 0, 1, 1, 0)),
}


@pytest.mark.parametrize("file", LABELS)
def test_flat_val_with_a_label_file(flat, file):
    (flat / file).write_text(LABELS[file])
    sets = load_image_sets(flat)
    assert sets["train"].classes == sets["val"].classes == CLASSES
    found = {item.name: item.label for item in sets["val"].items}
    assert found == {f"val/{names(n)}.png": label for n, label in ((1, 2), (2, 0), (3, 1), (4, 1), (5, 0))}
    assert sets["val"].items[0].image().size == (9, 7)


def test_class_folders(image_folder):
    sets = load_image_sets(image_folder)
    assert [len(sets["train"]), len(sets["val"])] == [24, 12]
    assert [item.label for item in sets["val"].items] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({item.label for item in sets["train"].first(6).items}) == 3
    assert sets["train"].digest() != sets["val"].digest()


def test_webdataset(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard:06d}.tar", "w") as tar:
            for index in range(3):
                for name, content in ((f"{index}.png", png(shard * 10 + index)), (f"{index}.cls", b"%d" % index)):
                    member = tarfile.TarInfo(f"a/{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    images = load_image_sets(tmp_path)["train"]
    assert [item.label for item in images.items] == [0, 1, 2, 0, 1, 2]
    assert [item.image().getpixel((0, 0))[0] for item in images.items] == [0, 1, 2, 10, 11, 12]


def test_parquet_of_the_hub(tmp_path):
    (tmp_path / "data").mkdir()
    for split, labels in (("train", [0, 1, 2, 1]), ("validation", [2, 0])):
        table = pa.table(
            {"image": [{"bytes": png(label + 5), "path": None} for label in labels], "label": labels},
        )
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet", row_group_size=2)
    sets = load_image_sets(tmp_path)
    assert [item.label for item in sets["train"].items] == [0, 1, 2, 1]
    assert [item.image().getpixel((0, 0))[0] for item in sets["val"].items] == [7, 5]


def break_label(root):
    (root / "val.txt").write_text(LABELS["val.txt"].replace(" 2", " 3"))


def break_count(root):
    (root / "synset_labels.txt").write_text("n01440764\n")


def break_missing(root):
    (root / "val.txt").write_text(LABELS["val.txt"].splitlines()[0])


def break_unknown(root):
    (root / "val.txt").write_text(LABELS["val.txt"] + "ILSVRC2012_val_00000009.JPEG 1\n")


def break_devkit(root):
    (root / "synset_labels.txt").write_text("490\n361\n171\n822\n297\n")


def break_class(root):
    (root / "val.txt").write_text(LABELS["val.txt"])
    (root / "train" / "n03").mkdir()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (break_label, r"val.txt, line 2: 3 is none of the 3 classes"),
        (break_count, r"synset_labels.txt: 1 lines for 5 images"),
        (break_missing, r"ILSVRC2012_val_00000001.png: .*val.txt does not name it \(4 such"),
        (break_unknown, r"val.txt, line 6: there is no image ILSVRC2012_val_00000009"),
        (break_devkit, r"synset_labels.txt: numbers alone; the devkit's"),
        (break_class, r"train/n03: holds no images"),
        (lambda root: None, r"val: flat, without a label file; name one with --val-labels"),
        (lambda root: (root / "train/n01440764/x.png").write_bytes(b""), r"n01440764/x.png: the file is empty"),
    ],
)
def test_broken_sets_are_told_by_name(flat, damage, told):
    damage(flat)
    with pytest.raises(InputError, match=told):
        load_image_sets(flat)


def test_broken_images_are_told_by_name(flat):
    whole = next((flat / "train" / CLASSES[1]).iterdir())
    broken = flat / "train" / CLASSES[1] / "cut.jpg"
    Image.effect_noise((64, 64), 90).save(broken)
    broken.write_bytes(broken.read_bytes()[:-900])
    (flat / "val.txt").write_text(LABELS["val.txt"])
    with pytest.raises(InputError, match=r"^train/n01443537/cut.jpg: cannot be decoded as an image"):
        check_images(load_image_sets(flat)["train"])
    broken.unlink()
    assert whole.exists()
    check_images(load_image_sets(flat)["train"])


def test_a_missing_split_is_told(image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    with pytest.raises(InputError, match="there is no val split; add val/"):
        one_split(load_image_sets(tmp_path), "val", tmp_path)
