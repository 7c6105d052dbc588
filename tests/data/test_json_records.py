"""`Records` against ``json.load`` of the whole file, and on files that are not what they should be."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_s2.data import json_records as records_module
from llava_s2.data.json_records import Records
from llava_s2.data.record_shapes import images_of
from llava_s2.errors import InputError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
record_lists = st.lists(st.dictionaries(st.text(max_size=6), values, max_size=4), min_size=1, max_size=8)


def read_all(path):
    records = Records(path)
    return [records[index] for index in range(len(records))]


@settings(deadline=None)
@given(data=record_lists, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]), window=st.integers(1, 60))
def test_array_and_lines_give_what_json_load_gives(tmp_path_factory, data, ascii_only, indent, window):
    folder = tmp_path_factory.mktemp("records")
    array, lines = folder / "a.json", folder / "a.jsonl"
    array.write_text(json.dumps(data, ensure_ascii=ascii_only, indent=indent), "utf-8", errors="replace")
    lines.write_bytes(b"\n\n".join(json.dumps(r, ensure_ascii=ascii_only).encode(errors="replace") for r in data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "_WINDOW", window)  # every record then straddles windows
        assert read_all(array) == json.loads(array.read_text("utf-8"))
        assert read_all(lines) == [json.loads(line) for line in lines.read_bytes().split(b"\n") if line]


def test_visit_sees_every_record_in_order_and_the_name_is_no_matter(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text('{"a": 1}\n\n  {"a": 2}\r\n{"a": 3}')
    seen = []
    assert len(Records(path, lambda index, record: seen.append((index, record["a"])))) == 3
    assert seen == [(0, 1), (1, 2), (2, 3)]
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + b'[{"a": 1}, {"a": "\xc3\xa9"}]')
    assert read_all(tmp_path / "bom.json") == [{"a": 1}, {"a": "é"}]


def test_where_names_file_record_id_and_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n{"id": "x"},\n\n{"id": 7},\n{}]')
    records = Records(path)
    assert records.where(1) == f"{path}: record 1 (id 7, line 4)"
    assert records.where(2) == f"{path}: record 2 (line 5)"


def test_a_worker_carries_positions_and_not_records(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "x" * 5000}) for _ in range(100)))
    records = Records(path)
    assert len(pickle.dumps(records)) < 4000
    assert pickle.loads(pickle.dumps(records))[99] == {"text": "x" * 5000}


def test_out_of_range_and_a_file_that_changed(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": 2}]')
    records = Records(path)
    assert records[-1] == {"a": 2}
    with pytest.raises(IndexError):
        records[2]
    path.write_text("[]")
    with pytest.raises(InputError, match="changed"):
        records[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no records"),
        (b"[]", "holds no records"),
        (b"hello", "line 1: record 0 is not JSON"),
        (b'[{"a": 1},\n{"a": }]', "line 2: record 1 is not JSON"),
        (b'[{"a": 1},\n{"a": "lon', "line 2: record 1 is not JSON.*cut off"),
        (b'[{"a": 1},\n{"a": 1', "record 1 is not JSON.*cut off"),
        (b'[{"a": 1}', "ends after record 0"),
        (b'[{"a": 1},', "record 1 is not JSON|ends after record 0"),
        (b'[{"a": 1} {"a": 2}]', "comma is missing after record 0"),
        (b'[{"a": 1},]', "comma stands after the last record"),
        (b'[{"a": 1}]\n{"b"', "line 2: something stands after"),
        (b'{"a": 1}\n{"a": 1,}\n', "line 2: record 1 is not JSON"),
        (b'[{"a": 1}, 3]', "record 1 .*not a JSON object but int"),
        (b'{"a": 1}\n[1]', "record 1 .*not a JSON object but list"),
        (b'[{"a": "\xff\xfe"}]', "not UTF-8"),
        ('[{"a": 1}]'.encode("utf-16"), "not UTF-8"),
        (b'[{"a": ' + b"[" * 100_000, "nested too deeply|not JSON"),
    ],
)
def test_bad_files_name_the_place(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Records(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="no such data file"):
            Records(path)


def test_images_of():
    assert images_of({}) == images_of({"image": None}) == []
    assert images_of({"image": "a.jpg"}) == ["a.jpg"]
    assert images_of({"image": ["a.jpg", "b.jpg"]}) == ["a.jpg", "b.jpg"]
    for wrong in (3, ["a", 3], {"a": 1}, [""]):
        with pytest.raises(InputError, match='"image" must be'):
            images_of({"image": wrong})
