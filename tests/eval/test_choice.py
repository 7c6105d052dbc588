"""MMMU, MathVista, SEED-Bench and MMBench: reading answers by the official rules, then runs and scores."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from choice_data import (
    MMMU_OPEN,
    MMMU_TWO_IMAGES,
    SEED,
    SUBJECTS,
    write_mathvista,
    write_mmbench,
    write_mmmu,
    write_seedbench,
)
from openpyxl import load_workbook
from vqa_data import write

from llava_s2 import cli
from llava_s2.eval.benchmark import Sample
from llava_s2.eval.mathvista import MathVista
from llava_s2.eval.mathvista import extract as extract_math
from llava_s2.eval.mathvista import normalize as normalize_math
from llava_s2.eval.mmbench import MMBench
from llava_s2.eval.mmmu import MMMU, is_open_answer, parse_letter
from llava_s2.eval.seedbench import SEEDBench
from llava_s2.eval.vlmevalkit import match_letter

WRITE = {"mmmu": write_mmmu, "mathvista": write_mathvista, "seedbench": write_seedbench, "mmbench": write_mmbench}
MMMU_FILE = "{}/validation-00000-of-00001.parquet"
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("'B'", "B"),
        ("b", None),  # letters are capitals
        ("(A) or rather (B)", "B"),  # the last one in brackets
        ("A B (C)", "C"),  # brackets before bare letters
        ("A is wrong, so B is right", "B"),
        ("The answer is B: blue", None),  # neither alone nor in brackets, and five words
        ("The answer must surely be dark red", "A"),  # "red" begins later than "dark red"
        ("I think the answer is blue here", "B"),
        ("blue", None),  # words count in answers of more than five
        ("", None),
        ("E", None),
    ],
)
def test_mmmu_letters_by_the_official_rules(text, letter):
    assert parse_letter(text, ["red", "blue", "dark red"]) == letter


@pytest.mark.parametrize(
    ("text", "references", "right"),
    [
        ("The answer is 0.17", ["1/6", "0.17"], True),
        ("so x = 1/6.", ["1/6", "0.17"], True),
        ("0.1667", ["0.17"], True),  # two decimals
        ("0.16", ["0.17"], False),
        ("$1,200", ["1200"], True),
        ("1200 dollars", ["1,200.00"], True),
        ("1.2e3", ["1200"], True),
        ("50%", ["50"], True),
        ("50%", ["0.5"], False),
        ("It is 5\nThus the result is 7", ["5"], True),  # each line has its conclusion
        ("5 comes first, the result is 7", ["5"], False),
        ("x = y or z", ["y"], True),
        ("easy", ["y"], False),  # a lone letter counts at a word's edge only
        ("It is New York City", ["new york"], True),
        ("york", ["new york"], False),
        ("", ["7"], False),
    ],
)
def test_mmmu_open_answers_by_the_official_rules(text, references, right):
    assert is_open_answer(references, text) is right


def choice(*choices):
    return {"choices": list(choices), "answer_type": "text", "precision": None}


def number(kind, precision=None):
    return {"choices": [], "answer_type": kind, "precision": precision}


@pytest.mark.parametrize(
    ("text", "question", "normalized"),
    [
        ("(B) 60°", choice("45°", "60°"), "60°"),
        ("The correct option is (b).", choice("45°", "60°"), "60°"),
        ("B", choice("45°", "60°"), "60°"),
        ("60 °", choice("45°", "60°"), "60°"),  # the most similar
        ("C", choice("45°", "60°"), "45°"),  # no such letter: equally far from both, the first
        ('The answer is "60°".', choice("45°", "60°"), "60°"),
        ("4.0", number("integer"), "4"),
        ("4.7", number("integer"), "4"),
        (" 4 ", number("integer"), "4"),
        ("4 apples", number("integer"), None),
        ('The answer is "4".', number("integer"), "4"),
        ("inf", number("integer"), None),
        ("1.25", number("float", 1.0), "1.2"),
        ("1.2 m", number("float", 1), None),
        ("1", number("float", 2), "1.0"),
        ("[1, 2]", number("list"), "[1, 2]"),
    ],
)
def test_mathvista_answers_by_the_official_rules(text, question, normalized):
    assert normalize_math(extract_math(text, question), question) == normalized


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. dog", "B"),
        ("(B)", "B"),
        ("b", None),
        ("Answer: B", "B"),
        ("A and B", None),
        ("A dog", "A"),  # an article counts as a letter among four words
        ("It is a dog", "B"),
        ("cat or dog", None),
        ("Z", None),
        ("Cannot determine the answer: B", None),
        ("dog" + " and more" * 20, None),  # too long for its text to count
        ("", None),
    ],
)
def test_mmbench_letters_by_exact_matching(text, letter):
    assert match_letter(text, ["cat", "dog"]) == letter


def test_mmbench_letters_at_the_start_of_a_sentence_do_not_count():
    assert match_letter("A big brown dog runs there", ["white cat", "brown dog"]) == "B"


def test_mmbench_counts_a_question_right_if_all_rotations_are(tmp_path, capsys):
    data = write_mmbench(tmp_path / "mmbench")
    right = {"0": "B", "1000000": "A", "1": "C", "1000001": "B", "2000001": "A. green"}
    status, scored, _ = score("mmbench", data, right, capsys)
    assert status == 0 and scored["variant"] == "dev-en"
    assert (scored["results"]["overall"]["correct"], scored["results"]["overall"]["count"]) == (2, 2)
    status, scored, _ = score("mmbench", data, right | {"1000001": "A"}, capsys)
    assert scored["scores"] == {"0": True, "1": False}
    assert scored["results"]["coarse_perception"]["correct"] == scored["results"]["image_style"]["correct"] == 0
    del right["1000000"]  # a rotation without an answer is no right answer
    status, scored, _ = score("mmbench", data, right, capsys)
    assert status == 2 and scored["missing"] == ["1000000"] and scored["scores"] == {"0": False, "1": True}


def test_mmbench_prompts_images_and_excel_file(tmp_path):
    data = write_mmbench(tmp_path / "mmbench")
    write_mmbench(data, "mmbench_test_cn_20231003.tsv", answers=False)
    samples = MMBench().load(data, "generate")
    assert samples[3].prompt == f"Look at\tthe hat.\nWhich 1?\nA. blue\nB. green\nC. red\n{LETTER}"
    assert samples[0].prompt == f"Which 0?\nA. cat\nB. dog\n{LETTER}"
    assert samples[1].images[0].read() == samples[0].images[0].read() != samples[2].images[0].read()
    benchmark = MMBench("test-cn")
    samples = benchmark.load(data, "generate")
    assert samples[0].prompt.endswith("\n请直接回答选项字母。")
    assert benchmark.grade(samples[0], {"text": "A"}) is None
    path = benchmark.write_submission(samples, {s.id: {"text": f"A\x07{s.id}"} for s in samples}, tmp_path)
    header, first, *_, last = load_workbook(path).active.iter_rows(values_only=True)
    assert header == ("index", "question", "A", "B", "C", "D", "prediction")
    assert first[:4] + first[6:] == (0, "Which 0?", "cat", "dog", "A0") and last[0] == 2_000_001


def test_prompts(tmp_path):
    samples = {sample.id: sample for sample in MMMU().load(write_mmmu(tmp_path / "mmmu"), "generate")}
    options = "(A) red\n(B) blue\n(C) dark red\n"
    assert samples[MMMU_TWO_IMAGES].prompt == f"What is <image 1> of Art?\n{options}\n{LETTER}"
    assert [len(samples[identity].images) for identity in (MMMU_TWO_IMAGES, MMMU_OPEN)] == [2, 1]
    short = "Answer the question using a single word or phrase."
    assert samples[MMMU_OPEN].prompt == f"What is <image 1> of Math?\n{short}"
    first, _, video = SEEDBench().load(write_seedbench(tmp_path / "seed"), "generate")
    lettered = "A. choice a\nB. choice b\nC. choice c\nD. choice d"
    assert first.prompt == f"How many towels are in the image?\n{lettered}\n{LETTER}"
    assert video.images == (tmp_path / "seed/SEED-Bench-video-image/10_v10_2.png",)
    assert len(SEEDBench("image").load(tmp_path / "seed", "generate")) == 2
    (_, math, _) = MathVista().load(write_mathvista(tmp_path / "math"), "generate")
    assert math.prompt.endswith("Choices:\n(A) 45°\n(B) 60°") and math.options == ("45°", "60°")


def score(task, data, texts, capsys, *more):
    path = data.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"question_id": i, "text": t}) + "\n" for i, t in texts.items()))
    status = cli.main(["score", task, "--data", str(data), "--predictions", str(path), *more])
    captured = capsys.readouterr()
    return status, json.loads(captured.out.splitlines()[-1]), captured


def test_mmmu_by_subject_and_discipline(tmp_path, capsys):
    data = write_mmmu(tmp_path / "mmmu")
    texts = {f"validation_{subject}_1": "(B)" for subject in SUBJECTS} | {
        MMMU_OPEN: "The probability is 1/6.",
        MMMU_TWO_IMAGES: "(A)",
        "validation_Music_1": "no idea",
    }
    status, scored, captured = score("mmmu", data, texts, capsys)
    assert status == 0
    results = scored["results"]
    assert (results["overall"]["correct"], results["overall"]["count"]) == (28, 30)
    assert results["overall"]["unparseable"] == 1
    art = results["Art and Design"]
    assert (art["correct"], art["count"], art["unparseable"]) == (2, 4, 1)
    assert results["Math"]["correct"] == 1 and results["Art"]["correct"] == 0
    headings = [line.split("  ")[0] for line in captured.out.splitlines() if line.startswith(("Art and", "Tech and"))]
    assert headings == ["Art and Design", "Tech and Engineering"]


@pytest.mark.parametrize("place", ["{subject}/validation/0000.parquet", "default/validation/0000.parquet"])
def test_mmmu_as_the_hub_converts_it(place, tmp_path, capsys):
    parts = [
        (path.parent.name, pq.read_table(path)) for path in sorted(write_mmmu(tmp_path / "own").glob("*/*.parquet"))
    ]
    if "subject" not in place:
        parts = [("", pa.concat_tables([table for _, table in parts], promote_options="permissive"))]
    for subject, table in parts:
        path = tmp_path / "hub" / place.format(subject=subject)
        path.parent.mkdir(parents=True)
        pq.write_table(table, path)
    texts = {f"validation_{subject}_1": "(B)" for subject in SUBJECTS} | {MMMU_OPEN: "1/6"}
    status, scored, _ = score("mmmu", tmp_path / "hub", texts, capsys)
    assert status == 0 and scored["results"]["overall"]["correct"] == 30


def test_mmmu_guesses_only_with_a_seed(tmp_path, capsys):
    data = write_mmmu(tmp_path / "mmmu")
    texts = {f"validation_{subject}_1": "no idea" for subject in SUBJECTS}
    assert score("mmmu", data, texts, capsys)[1]["results"]["overall"]["correct"] == 0
    guessed = [score("mmmu", data, texts, capsys, "--seed", seed)[1] for seed in ("42", "42", "43")]
    assert guessed[0] == guessed[1] != guessed[2]
    for scored in guessed:  # of three options, 29 questions
        assert 2 <= scored["results"]["overall"]["correct"] <= 19
    assert cli.main(["score", "mathvista", "--data", ".", "--predictions", "x", "--seed", "1"]) == 2
    assert "guesses no answers" in capsys.readouterr().err


def test_mathvista_by_task_and_skill(tmp_path, capsys):
    data = write_mathvista(tmp_path / "math")
    status, scored, _ = score("mathvista", data, {"1": "1.25", "2": "The answer is (A)", "3": "four"}, capsys)
    results = scored["results"]
    assert status == 0 and scored["scores"] == {"1": True, "2": False, "3": False}
    assert results["math word problem"]["accuracy"] == 0.5 and results["algebraic reasoning"]["accuracy"] == 0
    assert results["overall"]["unparseable"] == 1
    assert results["overall"]["count"] == 3  # a question of two skills counts once


def test_seedbench_takes_the_letter_alone(tmp_path, capsys):
    data = write_seedbench(tmp_path / "seed")
    texts = dict(zip(SEED, ("A", "C.", "B"), strict=True))
    status, scored, _ = score("seedbench", data, texts, capsys)
    assert status == 0 and list(scored["scores"].values()) == [True, False, True]
    results = scored["results"]
    assert [results[name]["count"] for name in ("Scene Understanding", "image", "video", "overall")] == [1, 2, 1, 3]
    assert results["overall"]["unparseable"] == 1


def test_seedbench_choices_of_a_likelihood_run():
    sample = Sample("1", "x", (), "?", ("red", "blue", "green", "A"), "B")
    assert SEEDBench().grade(sample, {"text": "blue", "losses": [3, 1, 2, 4]}).correct
    assert not SEEDBench().grade(sample, {"text": "A", "losses": [3, 2, 2, 1]}).correct
    assert not SEEDBench().grade(sample, {"text": "blue"}).correct


def test_mmmu_test_split_writes_the_servers_file(tmp_path):
    data = write_mmmu(tmp_path / "mmmu", "test")
    benchmark = MMMU()
    samples = benchmark.load(data, "generate")
    assert benchmark.variant == "test" and benchmark.grade(samples[0], {"text": "A"}) is None
    predictions = {sample.id: {"text": "(C) green"} for sample in samples}
    path = benchmark.write_submission(samples, predictions, tmp_path)
    submission = json.loads(path.read_text())
    assert len(submission) == 30 and submission["test_Art_1"] == "C" and submission["test_Math_1"] == "(C) green"


def drop_images(path, column, count):
    """Makes the first ``count`` images of a Parquet file's column null."""
    table = pq.read_table(path)
    place = table.column_names.index(column)
    values = [None] * count + table.column(column).to_pylist()[count:]
    pq.write_table(table.set_column(place, column, pa.array(values, table.schema.field(column).type)), path)


def replace_in(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("task", "fault", "named"),
    [
        ("mmmu", lambda d: (d / "Art/validation-00000-of-00001.parquet").unlink(), "1 of 30 subjects"),
        ("mmmu", lambda d: (d / "Art/validation-00000-of-00001.parquet").write_text("x"), "cannot be read as Parquet"),
        (
            "mmmu",
            lambda d: shutil.copy(d / MMMU_FILE.format("Art"), d / MMMU_FILE.format("Math")),
            "is of another subject",
        ),
        (
            "mmmu",
            lambda d: (d / MMMU_FILE.format("Art")).rename(d / "Art/validation-0-of-2.parquet"),
            "1 of the 2 files",
        ),
        ("mmmu", lambda d: drop_images(d / MMMU_FILE.format("Art"), "image_1", 1), "row 1: no image_1, which"),
        (
            "mathvista",
            lambda d: drop_images(*d.glob("data/*"), "decoded_image", 2),
            "row 1: no decoded_image (so for 2",
        ),
        ("mathvista", lambda d: (d / "data").rename(d / "other"), "holds none of testmini-*.parquet"),
        ("mmbench", lambda d: write_mmbench(d, "MMBench_DEV_EN.tsv"), "several TSV files of dev-en"),
        ("mmbench", lambda d: write_mmbench(d, "mmbench_dev_20230712.tsv", answers=False), "no 'answer'"),
        (
            "mmbench",
            lambda d: (d / "mmbench_dev_20230712.tsv").write_text("index\tA\n"),
            "holds no record",
        ),
        (
            "mmbench",
            lambda d: replace_in(d / "mmbench_dev_20230712.tsv", "cat", "<image>"),
            "question 0: its words hold <image>",
        ),
        ("seedbench", lambda d: write(d / "SEED-Bench.json", {"questions": []}), "at least one"),
    ],
)
def test_bad_data_is_one_line(task, fault, named, tmp_path, capsys):
    data = WRITE[task](tmp_path / "data")
    fault(data)
    where = ["--data", str(data), "--output", str(tmp_path / "run")]
    assert cli.main(["eval", task, "--model", str(tmp_path), *where]) == 2
    message = capsys.readouterr().err.strip()
    assert named in message and len(message.splitlines()) == 1
