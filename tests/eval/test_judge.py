"""MM-Vet and MathVista with a judge: a real HTTP server on loopback, which also fails."""

import json
import re
import statistics
import time

import httpx
import pytest
from choice_data import write_mathvista
from judge_server import JudgeServer
from mmvet_data import MMVET, write_mmvet

from llava_s2 import cli
from llava_s2.eval import judge as judging
from llava_s2.eval.mmvet import judge_prompt

KEY = "sk-very-secret"
SCORES = {"v1_0": "0.5", "v1_1": "1.0", "v1_2": "0.0", "v1_3": "0.4 or so", "v1_4": "1", "v1_5": "0.3"}
TEXTS = {identity: f"my answer {identity}\nin two lines" for identity in MMVET}


def by_answer(body):
    """The score of the answer that the last row of the prompt holds."""
    identity = re.findall(r"my answer (v1_\d)", body["messages"][0]["content"])[-1]
    return SCORES[identity]


@pytest.fixture
def server():
    with JudgeServer(by_answer).running() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Back-offs of milliseconds, and a key in the environment."""
    monkeypatch.setattr(judging, "_LONGEST_BACKOFF", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def predictions(folder, texts):
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps({"question_id": i, "text": t}) + "\n" for i, t in texts.items()))
    return path


def score(task, data, path, server, capsys, *more):
    flags = ["--judge-url", server.url, "--judge-model", "gpt-4-0613"] if server else []
    status = cli.main(["score", task, "--data", str(data), "--predictions", str(path), *flags, *more])
    captured = capsys.readouterr()
    return status, json.loads(captured.out.splitlines()[-1]) if status == 0 else captured.err, captured.out


def test_mmvet_by_capability_integration_and_run(tmp_path, server, capsys):
    drift = iter(["0.2", "0.2", "0.4", "0.4", "0.6"])  # v1_5 is graded differently in its five runs
    server.reply = lambda body: next(drift) if "my answer v1_5" in body["messages"][0]["content"] else by_answer(body)
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    status, scored, out = score("mmvet", data, path, server, capsys, "--judge-prices", "30", "60")
    assert status == 0
    expected = {"v1_0": 0.5, "v1_1": 1.0, "v1_2": 0.0, "v1_3": 0.4, "v1_4": 1.0, "v1_5": 0.36}
    assert scored["scores"] == pytest.approx(expected)
    accuracy = {name: row["accuracy"] for name, row in scored["results"].items()}
    for name in ("rec", "ocr", "know", "gen", "spat", "math"):
        of_it = [expected[i] for i, (_, _, capabilities, _) in MMVET.items() if name in capabilities]
        assert accuracy[name] == pytest.approx(statistics.fmean(of_it))
    assert accuracy["ocr + math"] == pytest.approx(0.43) and accuracy["rec alone"] == 1
    assert scored["results"]["rec + ocr + know + gen"]["count"] == 1
    assert accuracy["overall"] == pytest.approx(statistics.fmean(expected.values()))
    totals = [(2.9 + last) / 6 for last in (0.2, 0.2, 0.4, 0.4, 0.6)]
    assert sorted(scored["judge"]["totals"]) == pytest.approx(totals)
    assert scored["judge"]["spread"] == pytest.approx(statistics.pstdev(totals))
    account = scored["judge"]
    assert (account["requests"], account["cached"], account["prompt_tokens"]) == (30, 0, 21_000)
    assert account["dollars"] == pytest.approx(30 * (700 * 30 + 2 * 60) / 1e6) and account["models"] == ["judge-0613"]
    assert "30 requests" in out and "$0.63" in out and "standard deviation" in out


def test_the_official_prompt_and_settings(tmp_path, server, capsys):
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    score("mmvet", data, path, server, capsys, "--judge-runs", "1")
    bodies = {re.findall(r"my answer (v1_\d)", b["messages"][0]["content"])[0]: b for b, _, _ in server.requests}
    body = bodies["v1_0"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-4-0613", 0.0, 3)
    (message,) = body["messages"]
    assert message["role"] == "user"
    lines = message["content"].split("\n")
    assert lines[0].startswith("Compare the ground truth and prediction from AI models, to give a correctness score")
    assert lines[1:4] == ["", "Question | Ground truth | Prediction | Correctness", "--- | --- | --- | ---"]
    assert lines[4] == "What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0" and lines[11] == ""
    assert lines[12:] == ["What is x in the equation? | -1 <AND> -5 | my answer v1_0", "in two lines | "]
    assert judge_prompt("q", "a<OR>b", "c").endswith("| 1.0\n\nq | a <OR> b | c | ")


def test_replies_without_a_score_are_asked_again_and_counted(tmp_path, server, capsys):
    asked = []

    def reply(body):
        if "my answer v1_4" in body["messages"][0]["content"]:
            asked.append((body["temperature"], body["messages"][0]["content"].endswith("answer (digit): ")))
            return "perhaps"
        if "my answer v1_2" in body["messages"][0]["content"]:
            return "1.2" if body["temperature"] < 1 else " 0.9"  # as some tokenizers decode it
        return by_answer(body)

    server.reply = reply
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    status, error, _ = score("mmvet", data, path, server, capsys, "--judge-runs", "1", "--judge-concurrency", "1")
    assert status == 2 and "question v1_4: the judge gave no score in 5 replies" in error
    assert asked == [(0.0, False), (0.0, True), (0.5, True), (1.0, True), (1.5, True)]


def test_failures_that_pass_are_waited_out(tmp_path, server, capsys):
    server.faults = [
        (429, {"Retry-After": "0"}, '{"error": {"message": "slow down"}}'),
        (500, {}, "oops"),
        (503, {}, "<html>"),
        (200, {}, "no JSON"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": null}}]}'),
        "cut",
        "hang",
    ]
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    more = ("--judge-timeout", "1", "--judge-concurrency", "3")
    status, scored, out = score("mmvet", data, path, server, capsys, "--judge-runs", "2", *more)
    assert status == 0 and scored["scores"]["v1_0"] == 0.5
    assert scored["judge"]["retries"] == 8 and scored["judge"]["requests"] == 12 and len(server.requests) == 20
    assert 1 < server.most <= 3 and "8 retries" in out


def test_a_judge_that_takes_the_newer_bound_is_asked_by_it(tmp_path, server, capsys):
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    _, wanted, _ = score("mmvet", data, path, server, capsys)
    (tmp_path / "again").mkdir()
    path = predictions(tmp_path / "again", TEXTS)
    told = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.refusal = lambda body: (400, {}, json.dumps({"error": {"message": told}})) if "max_tokens" in body else None
    server.requests.clear()
    status, scored, _ = score("mmvet", data, path, server, capsys)
    assert status == 0, scored
    assert scored["scores"] == wanted["scores"]
    bounds = [body.get("max_completion_tokens") for body, _, _ in server.requests if "max_tokens" not in body]
    assert len(bounds) == wanted["judge"]["requests"] and len({*bounds}) == 1


def test_a_judge_that_refuses_temperatures_is_asked_at_its_own(tmp_path, server, capsys):
    told = "Unsupported value: 'temperature' does not support 0.0 with this model."
    server.refusal = lambda body: (400, {}, json.dumps({"error": {"message": told}})) if "temperature" in body else None
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    status, scored, out = score("mmvet", data, path, server, capsys, "--judge-runs", "1")
    assert status == 0 and scored["scores"]["v1_1"] == 1.0
    assert scored["judge"]["own_temperature"] == 6 and "6 verdicts were drawn at the judge's own temperature" in out
    _, again, _ = score("mmvet", data, path, server, capsys, "--judge-runs", "1")
    assert again["judge"]["cached"] == again["judge"]["own_temperature"] == 6


@pytest.mark.parametrize("refused", [True, False])
def test_a_judge_that_reasons_gets_room_for_it(refused, tmp_path, server, capsys):
    server.reply = lambda body: f"<think>0.7?</think> {by_answer(body)}" if body["max_tokens"] > 3 else None
    server.finish = lambda body: "stop" if body["max_tokens"] > 3 else "length"
    if refused:  # OpenAI's way to say so
        told = "Could not finish the message because max_tokens or model output limit was reached."
        server.refusal = lambda body: (
            (400, {}, json.dumps({"error": {"message": told}})) if body["max_tokens"] == 3 else None
        )
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    status, scored, _ = score("mmvet", data, path, server, capsys, "--judge-runs", "1")
    assert status == 0 and scored["scores"]["v1_5"] == 0.3 and "own_temperature" not in scored["judge"]
    server.reply, server.finish = lambda body: "<think>0.7", lambda body: "length"
    path = predictions(tmp_path, TEXTS | {"v1_0": "my answer v1_0, another"})
    status, error, _ = score("mmvet", data, path, server, capsys, "--judge-runs", "1")
    assert status == 2 and "all tokens went into its reasoning" in error


def test_retry_after_is_honoured(tmp_path, server, capsys):
    server.faults = [(429, {"Retry-After": "1"}, "{}")]
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    status, _, _ = score("mmvet", data, path, server, capsys, "--judge-runs", "1", "--judge-concurrency", "1")
    times = [moment for _, _, moment in server.requests]
    assert status == 0 and times[1] - times[0] >= 1
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 25 < judging._retry_after(httpx.Headers({"Retry-After": date})) <= 30
    server.faults = [(429, {"Retry-After": "90000"}, "{}")]
    path = predictions(tmp_path, TEXTS | {"v1_0": "my answer v1_0, another"})
    status, error, _ = score("mmvet", data, path, server, capsys, "--judge-runs", "1")
    assert status == 2 and "asks to wait 90000 s" in error


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ((401, {}, f"bad key {KEY}"), "taken from $OPENAI_API_KEY, which is set"),
        ((404, {}, "no such page"), "OpenAI-compatible API"),
        ((429, {}, '{"error": {"code": "insufficient_quota"}}'), "insufficient_quota"),
        ((400, {}, '{"error": {"message": "no such model"}}'), "no such model"),
    ],
)
def test_failures_that_stay_are_one_line_without_the_key(fault, named, tmp_path, server, capsys):
    server.faults = [fault] * 30
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    status, error, _ = score("mmvet", data, path, server, capsys)
    assert status == 2 and named in error and KEY not in error and len(error.strip().splitlines()[-1:]) == 1
    assert len(server.requests) <= 9  # the first one ends it


def test_what_was_judged_before_a_failure_is_not_asked_again(tmp_path, server, capsys):
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    flags = ("--judge-runs", "1", "--judge-concurrency", "1")
    server.faults = [None, None, *[(500, {}, "down")] * 60]  # for a next question, too, that is under way
    status, error, _ = score("mmvet", data, path, server, capsys, *flags)
    server.faults = []
    assert status == 2 and "2 of 6 answers are judged and kept" in error and "HTTP 500: down" in error
    cache = tmp_path / "answers.judge.jsonl"
    assert len(cache.read_text().splitlines()) == 2
    cache.write_bytes(cache.read_bytes()[:-9])  # killed while writing
    before = len(server.requests)
    status, scored, _ = score("mmvet", data, path, server, capsys, *flags)
    assert status == 0 and len(server.requests) - before == 5
    assert (scored["judge"]["requests"], scored["judge"]["cached"]) == (5, 1)
    status, again, _ = score("mmvet", data, path, server, capsys, *flags)
    assert again["scores"] == scored["scores"] and again["judge"]["cached"] == 6 and again["judge"]["requests"] == 0
    everything = "".join(file.read_text(errors="replace") for file in tmp_path.rglob("*.json*"))
    assert KEY not in everything and {header for _, header, _ in server.requests} == {f"Bearer {KEY}"}


def test_without_a_judge_mmvet_says_so(tmp_path, capsys):
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    status, error, _ = score("mmvet", data, path, None, capsys)
    assert status == 2 and "6 answer(s) without a verdict" in error and "--judge-url" in error
    for flags, named in (
        (["--judge-url", "http://127.0.0.1:9/v1"], "takes both"),
        (["--judge-url", "127.0.0.1", "--judge-model", "x"], "no http:// or https:// address"),
    ):
        status, error, _ = score("mmvet", data, path, None, capsys, *flags)
        assert status == 2 and named in error


def test_missing_unknown_and_double_answers_are_counted(tmp_path, server, capsys):
    data = write_mmvet(tmp_path / "data")
    lines = [("v1_0", TEXTS["v1_0"]), ("1", TEXTS["v1_1"]), ("v1_0", "my answer v1_4"), ("v1_9", "my answer v1_4")]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"question_id": i, "text": t}) + "\n" for i, t in lines))
    flags = ["--judge-url", server.url, "--judge-model", "gpt-4-0613", "--judge-runs", "1"]
    assert cli.main(["score", "mmvet", "--data", str(data), "--predictions", str(path), *flags]) == 2
    captured = capsys.readouterr()
    scored = json.loads(captured.out.splitlines()[-1])
    assert scored["missing"] == ["v1_2", "v1_3", "v1_4", "v1_5"]
    assert (scored["unknown"], scored["double"]) == (["v1_9"], ["v1_0"])
    assert scored["results"]["overall"]["count"] == 6  # those without an answer count as wrong
    assert scored["scores"] == {"v1_0": 0.5, "v1_1": 1.0, "v1_2": 0, "v1_3": 0, "v1_4": 0, "v1_5": 0}
    assert "4 missing" in captured.err and len(server.requests) == 2


def test_mathvista_asks_the_judge_where_the_rules_find_nothing(tmp_path, server, capsys):
    data = write_mathvista(tmp_path / "math")
    path = predictions(tmp_path, {"1": "It is 1.25 or so", "2": "(B) because it is wide", "3": "4"})
    replies = {"It is 1.25": " 1.25 ", "(B) because": "B"}
    server.reply = lambda body: next(r for t, r in replies.items() if t in body["messages"][0]["content"])
    status, scored, _ = score("mathvista", data, path, server, capsys)
    assert status == 0 and scored["scores"] == {"1": True, "2": True, "3": True}
    assert scored["judge"]["requests"] == 2  # a bare number needs none
    prompts = sorted(body["messages"][0]["content"] for body, _, _ in server.requests)
    assert prompts[0].startswith("Please read the following example. Then extract the answer from the model response")
    first = "Hint: …\nQuestion: When?\n\nIt is 1.25 or so\n\nExtracted answer: "
    assert any(prompt.endswith(f"\n\nExtracted answer: B\n\n{first}") for prompt in prompts)
    assert {(body["temperature"], body["max_tokens"]) for body, _, _ in server.requests} == {(0.0, 256)}
    status, scored, _ = score("mathvista", data, path, None, capsys)
    assert scored["scores"] == {"1": False, "2": True, "3": True}


def test_totals_of_the_runs_count_a_question_that_no_model_saw_as_the_score_does(tmp_path, server, capsys):
    data, path = write_mmvet(tmp_path / "data"), predictions(tmp_path, TEXTS)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["server_refused"] = "too large"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, scored, _ = score("mmvet", data, path, server, capsys, "--judge-runs", "1")
    assert scored["scores"]["v1_1"] == 0
    assert scored["judge"]["totals"] == [pytest.approx(scored["results"]["overall"]["accuracy"])]


def test_other_tasks_take_no_judge(tmp_path, server, capsys):
    status, _, _ = score("vqav2", tmp_path, tmp_path / "x", server, capsys)
    assert status == 2
    assert cli.main(["eval", "vqav2", "--model", "x", "--data", "x", "--output", "x", "--judge-url", "x"]) == 2
    assert "takes both" in capsys.readouterr().err
