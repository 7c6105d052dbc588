"""Images that cannot be read, that have to be converted, or that are repaired between two starts of a run."""

import base64
import io
import json
import os

import pytest
from PIL import Image
from tiny_model import MODEL
from vstar_data import ATTRIBUTES, POSITIONS, write_lettered, write_table, write_vstar

from llava_s2 import cli
from llava_s2.data.image_decoding import open_image
from llava_s2.errors import InputError


@pytest.fixture
def data(tmp_path, loads):
    return write_vstar(tmp_path / "vstar")


def evaluate(data, output, *more):
    return cli.main(["eval", "vstar", *MODEL, "--data", str(data), "--output", str(output), *more])


def records(output):
    return {r["question_id"]: r for r in map(json.loads, (output / "predictions.jsonl").read_text().splitlines())}


def report(output):
    return json.loads((output / "report.json").read_text())


def test_a_bad_image_is_named_counted_as_wrong_and_asked_again_when_repaired(data, tmp_path, capsys, loads):
    path = data / "relative_position/sa_5.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    (data / "direct_attributes/sa_1.jpg").write_bytes(b"")
    output = tmp_path / "run"
    assert evaluate(data, output) == 2
    assert "--on-bad-image skip" in capsys.readouterr().err
    assert not loads  # known before the model is loaded
    assert evaluate(data, output, "--on-bad-image", "skip") == 0
    out = capsys.readouterr().out
    assert "2 question(s) count as wrong because their image could not be read" in out and "sa_5.jpg" in out
    first = records(output)
    assert set(report(output)["bad_images"]) == {"relative_position/sa_5", "direct_attributes/sa_1"}
    assert report(output)["results"]["overall"]["count"] == len(ATTRIBUTES | POSITIONS)
    assert first["relative_position/sa_5"]["correct"] is False and first["relative_position/sa_5"]["text"] == ""
    path.write_bytes(whole)
    assert evaluate(data, output, "--on-bad-image", "skip") == 0
    second = records(output)
    assert second["relative_position/sa_5"]["losses"] and set(report(output)["bad_images"]) == {
        "direct_attributes/sa_1"
    }
    others = first.keys() - {"relative_position/sa_5"}
    assert {i: second[i] for i in others} == {i: first[i] for i in others}
    starts = len(loads)
    assert evaluate(data, output, "--on-bad-image", "skip") == 0
    assert len(loads) == starts  # nothing to ask


def test_a_missing_image_is_skipped_like_a_damaged_one_and_asked_about_when_it_comes(data, tmp_path, capsys, loads):
    path, output = data / "direct_attributes/sa_2.jpg", tmp_path / "run"
    whole = path.read_bytes()
    path.unlink()
    assert evaluate(data, output) == 2 and not loads
    assert "sa_2.jpg: no such image file (so for 1 of 5 images); --on-bad-image skip" in capsys.readouterr().err
    assert evaluate(data, output, "--on-bad-image", "skip") == 0
    before = records(output)
    assert set(report(output)["bad_images"]) == {"direct_attributes/sa_2"}
    path.write_bytes(whole)
    assert evaluate(data, output, "--on-bad-image", "skip") == 0
    after = records(output)
    assert [identity for identity in after if after[identity] != before[identity]] == ["direct_attributes/sa_2"]
    assert "bad_images" not in report(output)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_there_and_no_file_is_not_called_missing(make, data, tmp_path, capsys, loads):
    path = data / "direct_attributes/sa_2.jpg"
    path.unlink()
    make(path)
    assert evaluate(data, tmp_path / "run") == 2 and not loads
    assert "sa_2.jpg: a folder, a pipe or a device, and no image file (so for 1 of 5 images)" in capsys.readouterr().err


def test_an_image_that_is_replaced_has_its_own_question_asked_again_only(data, tmp_path, loads):
    output = tmp_path / "run"
    assert evaluate(data, output) == 0
    before = records(output)
    Image.new("RGB", (200, 90), "navy").save(data / "direct_attributes/sa_2.jpg")
    assert evaluate(data, output) == 0
    after = records(output)
    changed = {identity for identity in before if before[identity] != after[identity]}
    assert changed == {"direct_attributes/sa_2"}
    replaced = data / "direct_attributes/sa_3.jpg"
    size = replaced.stat().st_size
    Image.open(replaced).transpose(Image.Transpose.ROTATE_180).save(replaced, quality=20)
    replaced.write_bytes(replaced.read_bytes().ljust(size, b"\0"))
    assert replaced.stat().st_size == size  # by which it would pass for the image of before
    assert evaluate(data, output) == 0
    changed = {identity for identity in after if after[identity] != records(output)[identity]}
    assert changed == {"direct_attributes/sa_3"}


@pytest.mark.parametrize("kind", ["parquet", "tsv"])
def test_so_has_an_image_that_is_replaced_inside_a_data_file(kind, data, tmp_path, loads):
    table, output = tmp_path / "table", tmp_path / "run"
    write_lettered(data)
    path = table / ("data/test-00000-of-00001.parquet" if kind == "parquet" else "VStarBench.tsv")

    def write():
        if kind == "parquet":
            return write_table(data, path, images=True)
        rows = ["index\timage\tquestion\tA\tB\tC\tanswer\tcategory"]
        for number, (name, (question, options)) in enumerate({**ATTRIBUTES, **POSITIONS}.items()):
            category = "direct_attributes" if name in ATTRIBUTES else "relative_position"
            shown = base64.b64encode((data / category / f"{name}.jpg").read_bytes()).decode()
            cells = (number, shown, question, *[*options, ""][:3], "A", category)
            rows.append("\t".join(map(str, cells)))
        return path.write_text("\n".join(rows) + "\n")

    path.parent.mkdir(parents=True)
    write()
    assert evaluate(table, output) == 0
    before, starts = records(output), len(loads)
    assert evaluate(table, output) == 0 and len(loads) == starts
    Image.new("RGB", (200, 90), "navy").save(data / "direct_attributes/sa_2.jpg")
    write()
    assert evaluate(table, output) == 0
    after = records(output)
    (changed,) = {identity for identity in before if before[identity] != after[identity]}
    assert list(before).index(changed) == 1


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_what_editors_and_scanners_write_is_converted_and_counted(data, tmp_path, capsys):
    folder = data / "direct_attributes"
    cmyk, frames = io.BytesIO(), [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    Image.open(folder / "sa_1.jpg").convert("CMYK").save(cmyk, "JPEG")
    (folder / "sa_1.jpg").write_bytes(cmyk.getvalue())
    (folder / "sa_2.jpg").write_bytes(png(Image.new("I;16", (40, 30), 40_000)))
    (folder / "sa_3.jpg").write_bytes(png(frames[0], save_all=True, append_images=frames[1:]))
    assert evaluate(data, tmp_path / "run") == 0
    found = report(tmp_path / "run")
    assert found["converted_images"] == {"cmyk": 1, "sixteen_bits": 1, "first_frame": 1} and "bad_images" not in found
    assert "images converted while decoding" in capsys.readouterr().out


@pytest.mark.parametrize("exif", ["turn", "ignore"])
def test_exif_orientation_is_said_and_can_be_ignored(data, tmp_path, exif):
    image = Image.open(data / "direct_attributes/sa_1.jpg").copy()
    tags = Image.Exif()
    tags[0x0112] = 6
    image.save(data / "direct_attributes/sa_1.jpg", exif=tags)
    assert evaluate(data, tmp_path / "run", "--exif", exif, "--limit", "5") == 0
    found = report(tmp_path / "run")
    assert found["exif_orientation"] == {"turn": "turned", "ignore": "ignored"}[exif]
    assert found["converted_images"].get("orientation", 0) == (exif == "turn")


def test_a_run_killed_twice_among_bad_images_ends_as_if_it_never_was(data, tmp_path, capsys):
    os.truncate(data / "relative_position/sa_5.jpg", 300)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert evaluate(data, whole, "--on-bad-image", "skip") == 0
    assert evaluate(data, killed, "--on-bad-image", "skip") == 0
    path = killed / "predictions.jsonl"
    for lines in (3, 1):
        kept = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(kept[:lines]) + kept[lines][:25])
        (killed / "report.json").unlink()
        assert evaluate(data, killed, "--on-bad-image", "skip") == 0
    untimed = [{i: {**r, "seconds": 0} for i, r in records(run).items()} for run in (whole, killed)]
    assert untimed[0] == untimed[1] and report(whole)["bad_images"] == report(killed)["bad_images"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "a folder, a pipe or a device"),  # reading it would wait for ever
        (lambda path: path.symlink_to("/dev/zero"), "a folder, a pipe or a device"),  # and this never end
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "no such image file"),
    ],
)
def test_what_is_no_file_is_named_and_never_waited_for(make, reason, tmp_path):
    make(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=f"a.jpg: .*{reason}"):
        open_image(tmp_path / "a.jpg")
