"""A run paired with a log of lmms-eval or VLMEvalKit of the same questions, and runs that must not be paired."""

import json

import pytest
from openpyxl import Workbook
from tiny_model import MODEL
from vqa_data import write_textvqa
from vstar_data import write_lettered, write_table, write_vstar

from llava_s2 import cli
from llava_s2.eval.statistics import mcnemar_exact


@pytest.fixture
def run(tmp_path, loads):
    data = write_lettered(write_vstar(tmp_path / "vstar"))
    where = ["--data", str(data), "--output", str(tmp_path / "run"), "--scoring", "generate"]
    assert cli.main(["eval", "vstar", *MODEL, *where]) == 0
    return tmp_path / "run"


def graded(run):
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def compare(a, b, capsys):
    capsys.readouterr()
    assert cli.main(["compare", str(a), str(b)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_lmms_evals_log_is_paired_by_the_questions_own_ids(run, tmp_path, capsys):
    order = graded(run)[::-1]  # another order than here
    lines = [
        {
            "doc_id": place,
            "doc": {"question_id": record["aliases"][0], "text": "…"},
            "target": "A",
            "filtered_resps": ["A"],
            "vstar_overall_acc": {"question_id": "x", "score": float(record["question_id"].endswith("sa_1"))},
        }
        for place, record in enumerate(order)
    ]
    log = tmp_path / "20261128_samples_vstar_bench.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare(run, log, capsys)
    own = {record["question_id"]: record["correct"] for record in order}
    assert found["results"]["overall"]["correct_b"] == 1 and found["results"]["overall"]["count"] == 5
    only = {i for i in own if i.endswith("sa_1") and not own[i]}
    assert set(found["differing"]["only_b"]) == only
    assert found["results"]["overall"]["p"] == mcnemar_exact(sum(own.values()) - (not only), len(only))
    assert found["differences"]["kit"][1] == "lmms-eval"


def test_vlmevalkits_table_is_paired(run, tmp_path, capsys):
    book = Workbook()
    book.active.append(["index", "question", "answer", "prediction", "hit"])
    for record in graded(run):
        book.active.append([int(record["aliases"][0]), record["prompt"].splitlines()[0], "A", "A", 1])
    book.save(tmp_path / "LLaVA_VStarBench_result.xlsx")
    found = compare(tmp_path / "LLaVA_VStarBench_result.xlsx", run, capsys)
    assert found["results"]["overall"]["correct_a"] == 5 and found["a"]["model"] == "LLaVA_VStarBench_result"


def write_run(folder, task, records, **report):
    """A finished run as ``llava-s2 eval`` leaves one, as far as it is compared."""
    folder.mkdir()
    ids = [record["question_id"] for record in records]
    fields = {"task": task, "questions": "q", "question_ids": ids, "questions_in_data": len(ids), "model": "m"}
    fields |= {"protocol": "p", "results": {"overall": {}}, **report}
    (folder / "report.json").write_text(json.dumps(fields))
    lines = [{"text": "x", "category": "c", "correct": False, "options": [], **record} for record in records]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_ids_that_name_several_questions_pair_nothing_and_the_place_does(tmp_path, capsys):
    """POPE's sets have the same ids and lmms-eval's ``doc_id`` counts through all: 1 to 4 are other questions there."""
    sets, things = ("adversarial", "popular"), ("cat", "dog", "hat")
    asked = [(name, n, f"Is there a {thing}?") for name in sets for n, thing in enumerate(things, start=1)]
    records = [{"question_id": f"{name}/{n}", "prompt": f"{text}\nOne word."} for name, n, text in asked]
    run = write_run(tmp_path / "run", "pope", records)
    metrics = [{"question_id": str(n), "score": float(place == 4)} for place, (_, n, _) in enumerate(asked)]
    lines = [
        {"doc_id": place, "target": "no", "filtered_resps": "No", "token_counts": [{"output_tokens": 1}],
         "doc_hash": "1e0", "input": f"{text}\nAnswer in one word.", "pope_accuracy": metrics[place]}
        for place, (_, _, text) in enumerate(asked)
    ]  # fmt: skip
    log = tmp_path / "20260806_samples_pope.jsonl"  # lmms-eval of 2026-08: no 'doc', and several processes' order
    log.write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]))
    assert compare(run, log, capsys)["differing"]["only_b"] == ["popular/2"]
    part = write_run(tmp_path / "part", "pope", records[:3], questions_in_data=6)
    assert cli.main(["compare", str(part), str(log)]) == 2
    assert "cannot be told there by id and words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "row", "grade"),
    [
        # VLMEvalKit's eval_score of these is a mean of distances: 0 for the right answer.
        ("docvqa", {"eval_match": "[0.9, 0.0]", "eval_score": 0.45}, 1.0),
        ("docvqa", {"eval_match": "[0.9, 0.4]", "eval_score": 0.65}, 0.6),
        ("infovqa", {"eval_match": "[0.6]", "eval_score": 0.6}, 0.0),
        ("chartqa", {"eval_match": "[False, True]", "eval_score": 0.5}, 1),
        ("textvqa", {"eval_match": "[1, 1, 0.5, 0.5]", "eval_score": 0.75}, 0.75),
        ("pope", {"score": "True"}, 1),
    ],
)
def test_vlmevalkits_grades_are_those_of_its_totals(task, row, grade, tmp_path, capsys):
    run = write_run(tmp_path / "run", task, [{"question_id": "7", "prompt": "Who?\nOne word.", "correct": 0.5}])
    fields = {"index": 7, "question": "Who?", "prediction": "x", **row}
    (tmp_path / "M_SET.tsv").write_text("\t".join(fields) + "\n" + "\t".join(map(str, fields.values())) + "\n")
    assert compare(run, tmp_path / "M_SET.tsv", capsys)["results"]["overall"]["correct_b"] == pytest.approx(grade)


@pytest.mark.parametrize(
    ("task", "metrics", "grade"),
    [
        # What lmms-eval's process_results of these tasks return; it compares when it sums up.
        ("mmmu", {"mmmu_acc": {"question_type": "multiple-choice", "answer": "B", "parsed_pred": ["B"]}}, 1),
        ("mmmu", {"mmmu_acc": {"question_type": "multiple-choice", "answer": "B", "parsed_pred": "C"}}, 0),
        ("mmmu", {"mmmu_acc": {"question_type": "open", "answer": "1,234", "parsed_pred": ["it is", 1234.0]}}, 1),
        ("mmmu", {"mmmu_acc": {"question_type": "open", "answer": ["Red", "x"], "parsed_pred": ["dark red"]}}, 1),
        ("mmmupro", {"mmmu_acc": {"subject": "Art", "answer": "J", "parsed_pred": "J"}}, 1),
        ("mathvista", {"llm_as_judge_eval": {"answer": "3", "extraction": "2", "true_false": False}}, 0),
        ("mmerealworld", {"mme_realworld_score": {"category": "x", "pred_answer": "E", "answer": "E"}}, 1),
        ("blink", {"blink": {"pred": "It is (A).", "pred_parsed": "A", "gt_content": "A", "is_correct": True}}, 1),
        ("seedbench", {"seed_all": {"pred": "A", "answer": "B"}}, 0),
    ],
)
def test_lmms_evals_grades_are_those_of_its_totals(task, metrics, grade, tmp_path, capsys):
    run = write_run(tmp_path / "run", task, [{"question_id": "7", "prompt": "Who?", "correct": False}])
    line = {"doc_id": 0, "target": "x", "filtered_resps": "x", "input": "Who?", **metrics}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    assert compare(run, tmp_path / "samples.jsonl", capsys)["results"]["overall"]["correct_b"] == grade


def test_circular_eval_is_paired_with_a_log_of_the_first_forms(tmp_path, capsys):
    records = [{"question_id": str(i), "group": f"q{i % 1_000_000}", "prompt": f"Q{i % 1_000_000}?"}
               for i in (3, 1_000_003, 8, 1_000_008)]  # fmt: skip
    run = write_run(tmp_path / "run", "mmbench", records)
    rows = ["index\tquestion\tprediction\thit", "3\tQ3?\tA\t1", "8\tQ8?\tA\t0"]
    (tmp_path / "M_MMBench_DEV_EN_exact_matching_result.tsv").write_text("\n".join(rows) + "\n")
    found = compare(run, tmp_path / "M_MMBench_DEV_EN_exact_matching_result.tsv", capsys)
    assert found["results"]["overall"]["count"] == 2 and found["differing"]["only_b"] == ["q3"]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([{"doc_id": 0, "doc": {"question_id": "nowhere"}, "resps": ["A"], "acc": 1.0}], "cannot be told there"),
        ([{"question_id": 0, "text": "A"}], "is no log of lmms-eval"),
        ([{"index": 0, "prediction": "A", "eval_match": "['x']"}], "'eval_match' must be a list of numbers"),
    ],
)
def test_a_log_of_other_questions_is_refused(run, lines, named, tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["compare", str(run), str(tmp_path / "log.jsonl")]) == 2
    assert named in capsys.readouterr().err


def evaluate(task, data, output, *more):
    assert cli.main(["eval", task, *MODEL, "--data", str(data), "--output", str(output), *more]) == 0
    return output


def test_sentences_and_words_are_two_protocols_that_do_not_mix(tmp_path, loads, capsys):
    folder = write_lettered(write_vstar(tmp_path / "vstar"), first=1)
    text = (folder / "test_questions.jsonl").read_text().replace("The color of the cup is red.", "red")
    (folder / "test_questions.jsonl").write_text(text)
    write_table(folder, tmp_path / "copy/data/test.parquet", images=True)
    sentences = evaluate("vstar", folder, tmp_path / "s")
    words = evaluate("vstar", folder, tmp_path / "w", "--variant", "words")
    copy = evaluate("vstar", tmp_path / "copy", tmp_path / "c")
    reports = [json.loads((run / "report.json").read_text()) for run in (sentences, words, copy)]
    assert [r["variant"] for r in reports] == ["sentences", "words", "words"]
    assert len({r["protocol"] for r in reports}) == 2 and reports[1]["protocol"] == reports[2]["protocol"]
    capsys.readouterr()
    for other in (words, copy):
        assert cli.main(["compare", str(sentences), str(other)]) == 2
    assert cli.main(["report", str(sentences), str(words), "--output", str(tmp_path / "both")]) == 0
    assert {"## vstar, sentences", "## vstar, words"} <= set((tmp_path / "both/report.md").read_text().splitlines())


def test_what_differs_is_named_and_changed_references_are_refused(tmp_path, loads, capsys):
    data = write_textvqa(tmp_path / "textvqa")
    plain, ocr = (evaluate("textvqa", data, tmp_path / v, "--variant", v) for v in ("plain", "ocr"))
    found = compare(plain, ocr, capsys)
    assert found["asked_otherwise"] == ["34602", "34603"]
    found = found["differences"]
    assert found["variant"] == ["plain", "ocr"] and "prompts" in found and "kit" not in found
    path = data / "TextVQA_0.5.1_val.json"
    path.write_text(path.read_text().replace("nous", "other"))
    changed = evaluate("textvqa", data, tmp_path / "changed")
    assert cli.main(["compare", str(plain), str(changed)]) == 2
    assert "reference answers" in capsys.readouterr().err


def test_changed_labels_of_vstar_are_refused(tmp_path, loads, capsys):
    data = write_lettered(write_vstar(tmp_path / "vstar"))
    letters = evaluate("vstar", data, tmp_path / "letters", "--scoring", "generate")
    likelihood = evaluate("vstar", data, tmp_path / "likelihood")
    assert compare(letters, likelihood, capsys)["results"]["overall"]["count"] == 5
    questions = data / "test_questions.jsonl"
    questions.write_text(questions.read_text().replace('"label": "C"', '"label": "A"', 1))
    changed = evaluate("vstar", data, tmp_path / "changed", "--scoring", "generate")
    assert cli.main(["compare", str(letters), str(changed)]) == 2
    assert "reference answers" in capsys.readouterr().err


def test_runs_that_saw_different_images_are_refused(tmp_path, loads, capsys):
    data = write_vstar(tmp_path / "vstar")
    before = evaluate("vstar", data, tmp_path / "before")
    image = data / "direct_attributes/sa_1.jpg"
    image.write_bytes((data / "direct_attributes/sa_2.jpg").read_bytes())
    after = evaluate("vstar", data, tmp_path / "after")
    assert cli.main(["compare", str(before), str(after)]) == 2
    assert "different images of 1 question(s), such as direct_attributes/sa_1" in capsys.readouterr().err
    assert compare(evaluate("vstar", data, before), after, capsys)["results"]["overall"]["count"] == 5


def test_another_rule_grades_a_finished_run_anew(tmp_path, loads):
    from choice_data import write_mmbench

    data = write_mmbench(tmp_path / "mmbench")
    evaluate("mmbench", data, tmp_path / "run")
    starts = len(loads)
    evaluate("mmbench", data, tmp_path / "run", "--rule", "llava-s2")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert len(loads) == starts and report["rule"] == "llava-s2" and "llava-s2's rule" in report["protocol"]
