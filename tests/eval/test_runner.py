"""Whole runs on the tiny reference model, through the command line."""

import json

import pytest
from tiny_model import GOLDEN, MODEL
from vstar_data import ATTRIBUTES, POSITIONS, write_lettered, write_vstar

from llava_s2 import cli
from llava_s2.data.image_decoding import open_image
from llava_s2.errors import InputError
from llava_s2.eval import loading, runner
from llava_s2.eval.benchmark import Benchmark, Grade, Sample
from llava_s2.formats.model_source import ModelSource
from llava_s2.model import option_ranking
from llava_s2.model.inference import prepare_image
from llava_s2.model.option_ranking import Ranking, rank_options

QUESTIONS = {
    f"{c}/{n}": q
    for c, qs in (("direct_attributes", ATTRIBUTES), ("relative_position", POSITIONS))
    for n, q in qs.items()
}


pytestmark = pytest.mark.usefixtures("loads")


@pytest.fixture
def data(tmp_path):
    return write_vstar(tmp_path / "vstar")


def evaluate(data, output, *more):
    return cli.main(["eval", "vstar", *MODEL, "--data", str(data), "--output", str(output), *more])


def records(output):
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def losses_of(loaded, question, options, *images):
    model, processor = loaded
    pictures = tuple(prepare_image(processor, open_image(image)) for image in images)
    (ranking,) = rank_options(model, processor, pictures, [(question, options)])
    return ranking.losses


def untimed(output):
    return [{**r, "seconds": None} for r in records(output)]


def test_likelihood_run(data, tmp_path, loaded, capsys):
    output = tmp_path / "run"
    assert evaluate(data, output) == 0
    printed = capsys.readouterr().out
    found = {record["question_id"]: record for record in records(output)}
    assert found.keys() == QUESTIONS.keys()
    for identity, (question, options) in QUESTIONS.items():
        record = found[identity]
        losses = losses_of(loaded, question, options, data / f"{identity}.jpg")
        assert record["losses"] == pytest.approx(losses)
        assert record["text"] == options[losses.index(min(losses))]
        assert record["correct"] is (record["text"] == options[0])
        assert record["category"] == identity.split("/")[0]
        assert record["seconds"] > 0
    report = json.loads((output / "report.json").read_text())
    for category, heading in (
        ("direct_attributes", "attribute"),
        ("relative_position", "spatial"),
        ("overall", "overall"),
    ):
        of_it = [r for r in found.values() if category in (r["category"], "overall")]
        row = report["results"][category]
        right = sum(r["correct"] for r in of_it)
        assert (row["count"], row["correct"], row["accuracy"]) == (len(of_it), right, right / len(of_it))
        (line,) = [line for line in printed.splitlines() if line.startswith(heading)]
        assert f"{right} of {len(of_it)}" in line
        assert f"{row['interval'][0]:.1%} to {row['interval'][1]:.1%}" in line
    assert report["protocol"] in printed and report["model"] in printed and "s a question" in printed
    assert report["versions"]["transformers"]


@pytest.mark.parametrize("scoring", ["likelihood", "generate"])
@pytest.mark.parametrize("cut", [0, 1, 40, -1], ids=lambda cut: f"cut {cut}")
def test_a_run_that_was_cut_off_continues(data, tmp_path, loads, scoring, cut):
    write_lettered(data)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert evaluate(data, whole, "--scoring", scoring) == 0
    assert evaluate(data, resumed, "--scoring", scoring) == 0
    path = resumed / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    (resumed / "report.json").unlink()
    assert evaluate(data, resumed, "--scoring", scoring, "--batch-size", "2") == 0
    assert untimed(resumed) == untimed(whole)
    assert records(resumed)[:2] == [json.loads(line) for line in lines[:2]]
    results = [json.loads((run / "report.json").read_text())["results"] for run in (whole, resumed)]
    assert results[0] == results[1]
    assert len(loads) == 3
    assert evaluate(data, resumed, "--scoring", scoring) == 0
    assert len(loads) == 3  # nothing left to ask: no model needed


def test_letters_are_the_same_in_batches(data, tmp_path):
    write_lettered(data)
    outputs = [tmp_path / size for size in "124"]
    for output in outputs:
        assert evaluate(data, output, "--scoring", "generate", "--batch-size", output.name) == 0
    assert untimed(outputs[0]) == untimed(outputs[1]) == untimed(outputs[2])
    (first,) = [r for r in records(outputs[0]) if r["question_id"] == "direct_attributes/sa_1"]
    assert first["options"] == ATTRIBUTES["sa_1"][1][1:] + ATTRIBUTES["sa_1"][1][:1]


def test_answers_without_a_letter_are_wrong_and_counted(data, tmp_path, capsys):
    output = tmp_path / "run"
    assert evaluate(data, output, "--scoring", "generate") == 0
    unread = sum(not record["parseable"] for record in records(output))
    assert unread > 0  # the tiny model babbles
    assert not any(record["correct"] for record in records(output) if not record["parseable"])
    assert json.loads((output / "report.json").read_text())["results"]["overall"]["unparseable"] == unread
    assert f"{unread} question(s) with an answer that could not be read; count as wrong" in capsys.readouterr().out


@pytest.mark.parametrize("scoring", ["likelihood", "generate"])
def test_a_question_that_is_longer_than_the_context_is_counted(data, tmp_path, capsys, scoring):
    path = data / "direct_attributes/sa_1.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "question": "Which colour? " * 1000}))
    assert evaluate(data, tmp_path / "run", "--scoring", scoring, "--max-new-tokens", "2") == 0
    cut = {"cut": 5} if scoring == "generate" else {}  # the tiny model never ends by itself so soon
    assert json.loads((tmp_path / "run/report.json").read_text())["replies"] == {"too_long": 1, **cut}
    assert "1 question(s) are longer, with their answers, than the model's context" in capsys.readouterr().out


def test_a_limit_takes_of_each_category_and_grows(data, tmp_path, capsys):
    output = tmp_path / "run"
    assert evaluate(data, output, "--limit", "2") == 0
    assert {record["category"] for record in records(output)} == {"direct_attributes", "relative_position"}
    assert "on 2 of 5 questions" in capsys.readouterr().out
    assert evaluate(data, output) == 0
    assert sorted(record["question_id"] for record in records(output)) == sorted(QUESTIONS)


def test_a_run_that_grows_has_no_report_until_it_is_whole(data, tmp_path, capsys, monkeypatch):
    output = tmp_path / "run"
    assert evaluate(data, output, "--limit", "2") == 0
    with monkeypatch.context() as patch:
        patch.setattr("llava_s2.eval.runner.append_predictions", lambda *_: 1 / 0)  # killed before its first answer
        with pytest.raises(ZeroDivisionError):
            evaluate(data, output)
    assert cli.main(["compare", str(output), str(output)]) == 2
    assert "start the same llava-s2 eval again" in capsys.readouterr().err
    assert evaluate(data, output) == 0 and (output / "report.json").exists()


def test_text_only_shows_no_image(data, tmp_path, loaded, capsys):
    output = tmp_path / "run"
    assert evaluate(data, output, "--text-only") == 0
    for record in records(output):
        question, options = QUESTIONS[record["question_id"]]
        assert record["losses"] == pytest.approx(losses_of(loaded, question, options))
    assert "without the image" in json.loads((output / "report.json").read_text())["protocol"]
    assert evaluate(data, output) == 2
    assert "text_only was True, is None" in capsys.readouterr().err


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_losses_that_are_no_numbers_are_no_answer(data, tmp_path, monkeypatch, capsys, loss):
    monkeypatch.setattr(option_ranking, "rank_options", lambda *_: [Ranking([loss, 1.0, 0.5], near_tie=False)])
    assert evaluate(data, tmp_path / "run") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert (
        any(f"question {identity}: " in message for identity in QUESTIONS) and "--dtype float32 or bfloat16" in message
    )
    assert not (tmp_path / "run" / "predictions.jsonl").exists()


def test_an_option_that_is_a_special_token_is_named(data, tmp_path, capsys):
    path = data / "direct_attributes/sa_1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "options": ["</s>", "blue"]}))
    assert evaluate(data, tmp_path / "run") == 2
    assert "the option '</s>' is one of the model's special tokens" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_without_predictions_leaves_its_folder_free(data, tmp_path, monkeypatch):
    def broken(self):
        raise InputError("no such model")

    with monkeypatch.context() as patched:
        patched.setattr(ModelSource, "load", broken)
        assert evaluate(data, tmp_path / "run", "--template", "plain") == 2
    assert evaluate(data, tmp_path / "run") == 0


def test_predictions_of_another_program_are_refused(data, tmp_path, capsys):
    output = tmp_path / "run"
    assert evaluate(data, output, "--limit", "1") == 0
    with (output / "predictions.jsonl").open("a") as file:
        file.write('{"question_id": "x", "text": "A"}\n')
    assert evaluate(data, output) == 2
    assert "not written by llava-s2 eval" in capsys.readouterr().err


def test_a_checkpoint_trained_anew_in_the_same_place_is_another(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.safetensors").write_bytes(bytes(3_000_000))
    prints = [ModelSource(str(tmp_path / "m")).fingerprint()]
    for place in (0, 2_999_999):
        weights = bytearray(3_000_000)
        weights[place] = 1
        (tmp_path / "m/model.safetensors").write_bytes(weights)
        prints.append(ModelSource(str(tmp_path / "m")).fingerprint())
    assert len({p["model_checksum"] for p in prints}) == 3


def test_predictions_of_another_run_are_not_mixed(data, tmp_path, capsys, loads):
    output = tmp_path / "run"
    assert evaluate(data, output, "--limit", "1") == 0
    for change in (
        ["--scoring", "generate"],
        ["--model", str(GOLDEN / "vicuna-tiny")],
        ["--template", "llama_2"],
        ["--text-only"],
        ["--image-mode", "square"],
        ["--max-new-tokens", "5"],
    ):
        assert evaluate(data, output, *change) == 2
        assert "another run's predictions" in capsys.readouterr().err
    path = data / "direct_attributes/sa_1.json"
    path.write_text(path.read_text().replace("cup", "mug"))
    assert evaluate(data, output) == 2
    assert "prompts was" in capsys.readouterr().err
    for break_it in (lambda run: run.write_text("[]"), lambda run: run.unlink()):
        break_it(output / "run.json")
        assert evaluate(data, output) == 2
        assert "run.json" in capsys.readouterr().err
    assert len(loads) == 1


def _cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (
            lambda d: (d / "direct_attributes/sa_1.json").write_text('{"question": "What?", "options": ["one"]}'),
            "sa_1.json",
        ),
        (lambda d: (d / "direct_attributes/sa_1.jpg").unlink(), "sa_1"),
        (lambda d: (d / "relative_position/sa_5.jpg").write_text("no image"), "sa_5.jpg"),
        (lambda d: _cut_off(d / "relative_position/sa_5.jpg"), "sa_5.jpg: truncated"),
        (lambda d: d.rename(d.with_name("moved")), "no such folder"),
    ],
    ids=["one option", "no image", "a text", "truncated", "no folder"],
)
def test_bad_data_is_one_line_before_any_weight(data, tmp_path, capsys, loads, fault, named):
    fault(data)
    assert evaluate(data, tmp_path / "run") == 2
    message = capsys.readouterr().err.strip()
    assert named in message and len(message.splitlines()) == 1
    assert not loads


def test_a_truncated_image_beyond_those_checked_keeps_what_was_answered(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "_IMAGES_DECODED_AHEAD", 1)
    _cut_off(data / "relative_position/sa_5.jpg")
    output = tmp_path / "run"
    assert evaluate(data, output) == 2
    assert "sa_5.jpg" in capsys.readouterr().err.splitlines()[-1]
    answered = records(output)
    assert answered and not (output / "report.json").exists()


class Captions(Benchmark):
    """A benchmark that only this test knows: no image in one question, two in the other, any word is right."""

    name = "captions"
    protocols = {"generate": "any word"}  # noqa: RUF012
    categories = {"none": "no image", "two": "two images"}  # noqa: RUF012
    max_new_tokens = 3

    def load(self, data, scoring):
        pictures = tuple(sorted(data.glob("direct_attributes/*.jpg"))[:2])
        return [Sample("0", "none", (), "Say a word.", (), None), Sample("1", "two", pictures, "Which?", (), None)]

    def grade(self, sample, prediction):
        return Grade(correct=bool(prediction["text"]))


def test_the_runner_takes_any_benchmark(data, tmp_path):
    report = runner.evaluate(Captions(), ModelSource("any"), data, tmp_path / "run", batch_size=2)
    assert {category: row["count"] for category, row in report["results"].items()} == {
        "none": 1,
        "two": 1,
        "overall": 2,
    }
    assert report["results"]["overall"]["correct"] == sum(bool(record["text"]) for record in records(tmp_path / "run"))
