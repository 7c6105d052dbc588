"""A data file that was checked once is not checked again, unless something of it has changed."""

import io
import json
import os
import shutil
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_data import ASK, turns
from PIL import Image

from llava_s2.cli import main
from llava_s2.data import json_records, training_records
from llava_s2.data.training_records import check_records
from llava_s2.errors import InputError

COUNT = 1200


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / "images" / folder / f"{number}.png")
    return tmp_path / "images"


def records():
    """One in three has no image; their first questions, and so all their columns, are of different lengths."""
    for number in range(COUNT):
        asked = "word " * (number % 50)
        if number % 3:
            yield {
                "id": str(number),
                "image": f"{'ab'[number % 2]}/{number % 2}.png",
                "conversations": turns(f"{ASK} {asked}", "a"),
            }
        else:
            yield {"id": str(number), "image": None, "conversations": turns(f"Count {asked}", "a b")}


def as_json(folder):
    path = folder / "data.json"
    path.write_text(json.dumps(list(records())))
    return path


def as_parquet(folder):
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(list(records())), path)
    return path


def as_saved(folder):
    datasets.Dataset.from_list(list(records())).save_to_disk(folder / "data")
    return folder / "data"


def as_shards(folder):
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for record in list(records())[shard::3]:
                member = tarfile.TarInfo(f"{record['id']}.json")
                data = json.dumps(record).encode()
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return folder / "*.tar"


def known(checked):
    columns = (
        checked.lengths,
        checked.images_before_answer,
        checked.bytes_before_answer,
        checked.images,
        checked.bytes,
    )
    return np.stack(columns).tolist(), checked.notices, checked.bad, [checked.records[n] for n in (0, 1, COUNT - 1)]


def refuse_to_look(monkeypatch):
    """From here on no record may be validated, and no JSON file be read through."""

    def fail(*args):
        raise AssertionError("checked again")

    monkeypatch.setattr(training_records, "validate_record", fail)
    monkeypatch.setattr(json_records, "_scan", fail)


@pytest.mark.parametrize("write", [as_json, as_parquet, as_saved, as_shards])
def test_records_are_checked_once(images, tmp_path, monkeypatch, write):
    path = write(tmp_path)
    first = known(check_records(path, images, "vicuna_v1"))
    refuse_to_look(monkeypatch)
    assert known(check_records(path, images, "vicuna_v1")) == first
    assert known(check_records(path, images, "chatml")) == first  # which asks the same of a record


def test_several_files_by_weight_are_checked_once(images, tmp_path, monkeypatch):
    paths, weights = [as_json(tmp_path), as_parquet(tmp_path)], [0.5, 2]
    first = known(check_records(paths, images, "vicuna_v1", weights=weights, seed=3))
    refuse_to_look(monkeypatch)
    assert known(check_records(paths, images, "vicuna_v1", weights=weights, seed=3)) == first


def test_records_in_the_place_of_bad_ones_are_the_same(images, tmp_path, monkeypatch):
    path = as_json(tmp_path)
    path.write_text(path.read_text().replace("a/0.png", "a/2.png", 5))
    first = known(check_records(path, images, "vicuna_v1", skip_bad=True))
    assert len(first[2]) == 5
    with monkeypatch.context() as patch:
        refuse_to_look(patch)
        assert known(check_records(path, images, "vicuna_v1", skip_bad=True)) == first
    shutil.copy(images / "a" / "0.png", images / "a" / "2.png")
    assert not check_records(path, images, "vicuna_v1", skip_bad=True).bad


def test_data_that_changed_is_checked_again(images, tmp_path):
    path = as_json(tmp_path)
    check_records(path, images, "vicuna_v1")
    times = path.stat()
    path.write_text(path.read_text().replace('"human"', '"gpt12"', 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    with pytest.raises(InputError, match=r"record 0 .*gpt12"):
        check_records(path, images, "vicuna_v1")


def test_a_shard_that_changed_is_checked_again(images, tmp_path):
    shards = as_shards(tmp_path)
    check_records(shards, images, "vicuna_v1")
    first = tmp_path / "0.tar"
    first.write_bytes(first.read_bytes().replace(b'"human"', b'"gpt12"', 1))
    with pytest.raises(InputError, match="gpt12"):
        check_records(shards, images, "vicuna_v1")


def test_images_that_went_are_found_missing(images, tmp_path):
    path = as_json(tmp_path)
    check_records(path, images, "vicuna_v1")
    (images / "b" / "1.png").unlink()
    with pytest.raises(InputError, match=r"b/1\.png: no such image file"):
        check_records(path, images, "vicuna_v1")


def test_what_another_template_refuses_is_found(images, tmp_path):
    path = as_json(tmp_path)
    check_records(path, images, "vicuna_v1")
    with pytest.raises(InputError, match="plain template needs one human turn with an image"):
        check_records(path, images, "plain")


def test_a_start_trusts_data_check_with_the_images_too(images, tmp_path, monkeypatch, capsys):
    path = as_json(tmp_path)
    assert main(["data", "check", str(path), "--images", str(images), "--model", "none"]) == 0
    refuse_to_look(monkeypatch)
    monkeypatch.setattr(training_records.Mix, "open_images", lambda *args: pytest.fail("opened again"))
    assert len(check_records(path, images, "chatml").records) == COUNT


def test_damaged_images_are_looked_for_after_data_check_found_one(images, tmp_path):
    path = as_json(tmp_path)
    (images / "a" / "0.png").write_bytes(b"none")
    assert main(["data", "check", str(path), "--images", str(images), "--model", "none"]) == 1
    with pytest.raises(InputError, match=r"a/0\.png"):
        check_records(path, images, "vicuna_v1")


def test_without_a_place_to_keep_it_records_are_checked_again(images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = as_json(tmp_path)
    assert known(check_records(path, images, "vicuna_v1")) == known(check_records(path, images, "vicuna_v1"))
