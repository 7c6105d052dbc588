"""``python -m llava_s2.eval.model_vqa_loader``: chunks, input that is wrong, and an answers file to go on with."""

import json

import pytest
from tiny_model import MODEL
from vqa_data import picture

from llava_s2.errors import InputError
from llava_s2.eval.model_vqa_loader import chunk, main


@pytest.mark.parametrize(("questions", "count"), [(10, 3), (7, 7), (5, 4), (3, 8)])
def test_chunks_are_whole_and_in_order(questions, count):
    rows = [{"question_id": number} for number in range(questions)]
    parts = [chunk(rows, count, index) for index in range(count)]
    assert [row for part in parts for row in part] == rows
    assert max(map(len, parts)) == -(-questions // count)
    with pytest.raises(InputError, match="--chunk-idx"):
        chunk(rows, count, count)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: not valid JSON"),
        (['{"text": "q"}'], '"question_id" and "text"'),
        ([json.dumps({"question_id": 1, "text": "q", "image": "none.jpg"})], "none.jpg: no such image file"),
        ([], "holds no record"),
    ],
)
def test_questions_that_cannot_be_asked(tmp_path, capsys, lines, message):
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    flags = ["--model-path", "m", "--image-folder", tmp_path, "--question-file", tmp_path / "q.jsonl"]
    assert main([*map(str, [*flags, "--answers-file", tmp_path / "a.jsonl"])]) == 2
    assert message in capsys.readouterr().err


def test_an_answers_file_of_another_model_is_kept(tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "text": "q"}')
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "model_id": "other", "text": "a"}\n')
    flags = ["--model-path", "m", "--question-file", f"{tmp_path}/q.jsonl", "--answers-file", f"{tmp_path}/a.jsonl"]
    assert main(flags) == 2
    assert "holds answers of other" in capsys.readouterr().err


def test_it_goes_on_after_a_kill_where_ids_are_the_images(tmp_path, loads):
    """TextVQA's and MME's questions have their image's name for an id; a line's end may stand inside of words."""
    picture(tmp_path / "a.png", 1)
    asked = [("a.png", "Which colour?"), ("a.png", "Which\u2028form?"), ("a.png", "Which colour?")]
    lines = [json.dumps({"question_id": i, "image": i, "text": text}, ensure_ascii=False) for i, text in asked]
    (tmp_path / "q.jsonl").write_text("\n".join(lines), encoding="utf-8")
    flags = ["--model-path", MODEL[1], "--vision-tower", MODEL[3], "--dtype", "float32", "--temperature", "0"]
    flags += ["--max_new_tokens", "2", "--image-folder", str(tmp_path)]
    flags += ["--question-file", str(tmp_path / "q.jsonl"), "--answers-file", str(tmp_path / "a.jsonl")]
    assert main(flags) == 0
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(whole[: whole.index(b"\n") + 40])
    assert main(flags) == 0
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_bytes().split(b"\n")[:-1]]
    assert [(a["question_id"], a["prompt"]) for a in answers] == asked
