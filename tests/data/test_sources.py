"""Records and images from other places than a JSON file and a folder, and several in one mix."""

import io
import json
import pickle
import tarfile
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_data import ASK, turns
from PIL import Image

from llava_s2.data import table_records
from llava_s2.data.image_files import ImageFiles
from llava_s2.data.sources import Mix, Source, read_records
from llava_s2.data.training_records import check_records
from llava_s2.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def shades(images):
    return [image.getpixel((0, 0))[0] for image in images]


CONVERSATIONS = [turns(f"{ASK} {number}", "a " * (number + 1), "More?", "no") for number in range(7)]
WANTED = [[], [1], [2], [3], [4], [5], [6]]  # shades of each record's images; the first is text alone


def texts(number):
    return turns(CONVERSATIONS[number][0]["value"].replace("<image>", "" if number == 0 else "<image>"), "a", "b", "c")


def columns(image_of):
    return {
        "id": [f"r{number}" for number in range(7)],
        "image": [None if number == 0 else image_of(number) for number in range(7)],
        "conversations": [texts(number) for number in range(7)],
        "other": list(range(7)),
    }


def as_arrow(folder):
    data = datasets.Dataset.from_dict(columns(lambda n: {"bytes": png(n), "path": f"{n}.png"}))
    data.cast_column("image", datasets.Image()).save_to_disk(folder / "data", num_shards=3)
    return folder / "data"


def as_split(folder):
    data = datasets.Dataset.from_dict(columns(lambda n: {"bytes": png(n), "path": None}))
    shuffled = data.select([6, 5, 4, 3, 2, 1, 0]).select([6, 5, 4, 3, 2, 1, 0])
    datasets.DatasetDict({"test": data.select([0]), "train": shuffled}).save_to_disk(folder / "data")
    return folder / "data"


def as_parquet(folder):
    data = datasets.Dataset.from_dict(columns(lambda n: {"bytes": png(n), "path": f"{n}.png"}))
    (folder / "data").mkdir()
    data.select(range(4)).to_parquet(folder / "data" / "0.parquet", batch_size=2)
    data.select(range(4, 7)).to_parquet(folder / "data" / "1.parquet")
    return folder / "data"


def as_bytes_column(folder):
    pq.write_table(pa.table(columns(png)), folder / "data.parquet", row_group_size=3)
    return folder / "data.parquet"


def as_list_of_bytes(folder):
    pq.write_table(pa.table(columns(lambda n: [{"bytes": png(n)}])), folder / "data.parquet", row_group_size=3)
    return folder / "data.parquet"


def as_paths(folder):
    for number in range(1, 7):
        (folder / f"{number}.png").write_bytes(png(number))
    pq.write_table(pa.table(columns(lambda n: f"{n}.png")), folder / "data.parquet")
    return folder / "data.parquet"


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(data), 1700000000.5  # a fraction: Python writes a pax header before each
    archive.addfile(member, io.BytesIO(data))


def as_shards(folder):
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(7)[shard * 4 : shard * 4 + 4]:
                record = {"id": f"r{number}", "conversations": texts(number)}
                if number:
                    add(archive, f"dir/0{number}.png", png(number))
                add(archive, f"dir/0{number}.json", json.dumps(record).encode())
    return folder / "*.tar"


KINDS = [as_arrow, as_split, as_parquet, as_bytes_column, as_list_of_bytes, as_paths, as_shards]


@pytest.mark.parametrize("write", KINDS)
def test_each_kind_gives_the_records_and_the_images(tmp_path, write, monkeypatch):
    monkeypatch.setattr(table_records, "_READ_BEFORE_RELEASE", 3)
    checked = check_records(write(tmp_path), tmp_path, "vicuna_v1")
    records = pickle.loads(pickle.dumps(checked.records)) if write is not as_list_of_bytes else checked.records
    assert len(records) == 7
    for number in (*range(7), 3, 0):
        assert records[number]["conversations"] == texts(number)
        assert shades(records.open_images(number)) == WANTED[number]
        assert f"'r{number}'" in records.where(number)
    assert [length < 0 for length in checked.lengths.tolist()] == [True] + [False] * 6


@pytest.mark.parametrize("write", [as_arrow, as_parquet, as_shards])
def test_what_is_damaged_inside_a_source_is_named(tmp_path, write, monkeypatch):
    real = png
    monkeypatch.setattr("test_sources.png", lambda shade: b"no picture" if shade == 5 else real(shade))
    with pytest.raises(InputError, match=r"\(id 'r5'\): .* not an image"):
        check_records(write(tmp_path), tmp_path, "vicuna_v1")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_that_are_not_read_are_told_or_refused(tmp_path, ending):
    def written(**columns):
        rows = {"image": [{"bytes": png(9), "path": None}], "conversations": [turns(ASK, "a")], **columns}
        if ending == "parquet":
            pq.write_table(pa.table(rows), tmp_path / "d.parquet")
            return tmp_path / "d.parquet"
        datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "d")
        return tmp_path / "d"

    held = [{"bytes": b"x", "path": "a.bin"}]
    notices = check_records(written(depth=held, topic=["t"], weight=[1], context=[None]), None, "vicuna_v1").notices
    assert '"depth" looks like media and is not read' in notices[0]
    assert notices[1].endswith("not read: topic (1 records), weight (1 records)")
    for columns, message in (({"audio": held}, '"audio": videos and sounds'), ({"weight": [0.5]}, '"weight" of a')):
        with pytest.raises(InputError, match=message):
            check_records(written(**columns), None, "vicuna_v1")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_images_inside_the_messages_of_a_table(tmp_path, ending):
    parts = [{"type": "image", "text": None, "image": {"bytes": png(7), "path": None}}]
    parts += [{"type": "text", "text": "What?", "image": None}]
    reply = [{"type": "text", "text": "A cup.", "image": None}]
    rows = {"messages": [[{"role": "user", "content": parts}, {"role": "assistant", "content": reply}]]}
    if ending == "parquet":
        pq.write_table(pa.table(rows), tmp_path / "d.parquet")
    else:
        datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "d.arrow")
    records = check_records(tmp_path / f"d.{ending}", None, "vicuna_v1").records
    assert shades(records.open_images(0)) == [7]


def test_a_sample_with_a_video_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.json", json.dumps({"messages": [{"role": "user", "content": "q"}]}).encode())
        add(archive, "0.mp4", b"x")
    with pytest.raises(InputError, match=r"record 0: videos and sounds are not trained on"):
        check_records(tmp_path / "a.tar", None, "vicuna_v1")


def test_images_in_tars_beside_and_inside_a_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "loose.png").write_bytes(png(9))
    for shard in range(2):
        with tarfile.open(tmp_path / "images" / f"{shard}.tar", "w") as archive:
            for number in range(3):
                add(archive, f"./coco/{'long' * 40 * number}{shard}{number}.png", png(shard * 10 + number))
    for source in (tmp_path / "images", tmp_path / "images" / "*.tar"):
        for _ in range(2):  # the second time from the index
            files = pickle.loads(pickle.dumps(ImageFiles(source)))
            for shard in range(2):
                for number in range(3):
                    name = f"coco/{'long' * 40 * number}{shard}{number}.png"
                    assert shades([files.open(name)]) == [shard * 10 + number]
        with pytest.raises(InputError, match=r"coco/none\.png: no such image"):
            files.find("coco/none.png")
    assert shades([ImageFiles(tmp_path / "images").open("loose.png")]) == [9]
    assert len(list((tmp_path / "cache" / "llava-s2").iterdir())) == 2


def test_a_tar_that_changed_is_indexed_again(tmp_path):
    for shade in (1, 2):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            add(archive, "x" * shade + ".png", png(shade))
        assert shades([ImageFiles(tmp_path / "a.tar").open("x" * shade + ".png")]) == [shade]


def test_tars_that_cannot_be_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        add(archive, "1.png", png(1))
    with pytest.raises(InputError, match=r"a\.tar\.gz: compressed"):
        ImageFiles(tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "cut.tar", "w") as archive:
        add(archive, "1.png", bytes(5000))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cut.tar: (cut off|no tar)"):
        ImageFiles(tmp_path / "cut.tar")
    with pytest.raises(InputError, match="no such image folder or tar file"):
        ImageFiles(tmp_path / "none*.tar")


def test_files_of_several_splits_are_not_trained_on_together(tmp_path):
    """As the hub has them, in one folder or in one for each."""
    for test in ("a/test-00000-of-00001", "b/validation/0", "c/x_val_0"):
        place = tmp_path / test[0]
        for name in (test, test.replace("test", "train").replace("validation", "train").replace("_val", "_train")):
            (path := tmp_path / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"conversations": [turns("q", "a")]}), path)
        with pytest.raises(InputError, match="holds files of the splits"):
            read_records(place)
        assert len(read_records(path)) == 1
    assert len(read_records(tmp_path / "c" / "*train*")) == 1
    with pytest.raises(InputError, match="splits train, validation"):
        read_records(tmp_path / "c" / "*.parquet")


def test_many_images_of_a_sample_stand_in_order(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.json", json.dumps({"conversations": turns("<image>" * 12, "a")}).encode())
        for number in range(12):
            add(archive, f"0.{number}.png", png(number))
    assert shades(check_records(tmp_path / "a.tar", None, "vicuna_v1").records.open_images(0)) == [*range(12)]


def test_tables_and_folders_that_are_none(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column conversations, but"):
        read_records(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"b\.parquet: cannot be read as Parquet"):
        read_records(tmp_path / "b.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither datasets"):
        read_records(tmp_path / "empty")


def sources(tmp_path, *counts):
    made = []
    for number, count in enumerate(counts):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps([{"id": f"{number}-{i}", "conversations": turns("q", "a")} for i in range(count)]))
        made.append(path)
    return made


@pytest.mark.parametrize("weights", [[1, 1], [2, 0.5], [0.25, 1.3], [0, 3]])
def test_a_mix_has_each_record_as_often_as_its_weight_says(tmp_path, weights):
    paths = sources(tmp_path, 40, 10)
    parts = [Source(read_records(path), ImageFiles(None)) for path in paths]
    mix = Mix(parts, weights, seed=3)
    ids = [mix[index]["id"] for index in range(len(mix))]
    assert ids == [record["id"] for record in (Mix(parts, weights, seed=3)[i] for i in range(len(mix)))]
    for number, (count, weight) in enumerate(zip((40, 10), weights, strict=True)):
        often = Counter(name for name in ids if name.startswith(f"{number}-"))
        assert sum(often.values()) == round(count * weight)
        assert all(int(weight) <= often[f"{number}-{i}"] <= np.ceil(weight) for i in range(count))
    if weights[0] % 1:
        assert ids != [Mix(parts, weights, seed=4)[i]["id"] for i in range(len(mix))]


def test_a_mix_in_training_names_files_and_takes_each_ones_images(tmp_path):
    for number in range(2):
        (tmp_path / f"i{number}").mkdir()
        (tmp_path / f"i{number}" / "a.png").write_bytes(png(100 * number))
        record = {"id": number, "image": "a.png", "conversations": turns(ASK, "a")}
        (tmp_path / f"{number}.json").write_text(json.dumps([record] * 2))
    paths, folders = [tmp_path / "0.json", tmp_path / "1.json"], [tmp_path / "i0", tmp_path / "i1"]
    records = check_records(paths, folders, "vicuna_v1", weights=[1, 2]).records
    assert [shades(records.open_images(index)) for index in range(6)] == [[0], [0], [100], [100], [100], [100]]
    assert records.where(5) == f"{paths[1]}: record 1 (id 1, line 1)"
    for weights, given in (([1], folders), ([1, -1], folders), (None, [*folders, folders[0]]), ([0, 0], folders)):
        with pytest.raises(InputError, match=r"data_weights|3 image folders for 2"):
            check_records(paths, given, "vicuna_v1", weights=weights)
