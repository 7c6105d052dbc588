"""``--model-url``: an OpenAI-compatible server answers in place of a local model."""

import base64
import io
import json
import threading
import time
from copy import copy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from vstar_data import write_lettered, write_vstar

from llava_s2 import cli


class Handler(BaseHTTPRequestHandler):
    """Answers B; gives a prompt's words log-probabilities of minus their number of letters."""

    seen: list[dict] = []  # noqa: RUF012
    behind_turns: tuple[str, ...] = ()
    gives_logprobs = True
    lists_models = True
    reply = staticmethod(lambda body: {"content": " B\n"})  # a message; its finish_reason beside; or (status, words)

    def do_GET(self):
        if not self.lists_models:
            return self.send({"detail": "Not Found"}, 404)
        self.send({"object": "list", "data": [{"id": "served", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        told = self.reply(body)
        if isinstance(told, tuple):
            return self.send({"error": {"message": told[1]}}, told[0])
        finish = told.pop("finish_reason", "stop")
        message = {"role": "assistant", **told}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "served"}
        answer["choices"] = [{"index": 0, "finish_reason": finish, "message": message}]
        if "prompt_logprobs" in body and self.gives_logprobs:
            words = ["<s>"]
            for turn in body["messages"]:
                parts = (
                    turn["content"]
                    if isinstance(turn["content"], list)
                    else [{"type": "text", "text": turn["content"]}]
                )
                words += [word for part in parts if part["type"] == "text" for word in part["text"].split()]
                words += [turn["role"][0], *self.behind_turns]
            entries = [{"7": {"logprob": -float(len(word)), "decoded_token": word}} for word in words[1:]]
            answer["prompt_logprobs"] = [None, *entries]
        self.send(answer)

    def send(self, value, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(Handler, "seen", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


def evaluate(folder, url, *more):
    data = folder / "vstar"
    if not data.exists():
        write_lettered(write_vstar(data))
    where = ["--data", str(data), "--output", str(folder / "run"), "--model", "served", "--model-url", url]
    return cli.main(["eval", "vstar", *where, *more])


def records(folder):
    return [json.loads(line) for line in (folder / "run/predictions.jsonl").read_text().splitlines()]


def test_it_is_asked_with_the_image_and_the_prompt(tmp_path, url):
    assert evaluate(tmp_path, url, "--scoring", "generate") == 0
    assert {record["text"] for record in records(tmp_path)} == {"B"}
    body = next(body for body in Handler.seen if "cup?" in str(body["messages"]))
    image, text = body["messages"][0]["content"]
    sent = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].split(",")[1])))
    with Image.open(tmp_path / "vstar/direct_attributes/sa_1.jpg") as original:
        assert sent.convert("RGB").tobytes() == original.convert("RGB").tobytes()
    assert text["text"].endswith("from the given choices directly.") and body["temperature"] == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["model"] == "served" and report["results"]["overall"]["count"] == 5


@pytest.mark.parametrize(("turned", "exif"), [(False, "turn"), (True, "turn"), (True, "ignore")])
def test_a_file_is_sent_as_it_is_unless_the_server_would_see_another_image(turned, exif, tmp_path, url):
    path = tmp_path / "vstar/direct_attributes/sa_1.jpg"
    write_lettered(write_vstar(tmp_path / "vstar"))
    tags = Image.Exif()
    tags[0x0112] = 6 if turned else 1
    image = Image.open(path).copy()
    image.save(path, exif=tags)
    assert evaluate(tmp_path, url, "--scoring", "generate", "--exif", exif) == 0
    body = next(body for body in Handler.seen if "cup?" in str(body["messages"]))
    head, sent = body["messages"][0]["content"][0]["image_url"]["url"].split(",")
    sent = base64.b64decode(sent)
    assert (sent == path.read_bytes()) is not turned and head == f"data:image/{'png' if turned else 'jpeg'};base64"
    shown = Image.open(path).convert("RGB")
    shown = shown.transpose(Image.Transpose.ROTATE_270) if turned and exif == "turn" else shown
    sent = Image.open(io.BytesIO(sent))
    assert sent.convert("RGB").tobytes() == shown.tobytes() and sent.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("behind", [(), ("\n",), ("\n", " ")])
def test_likelihood_is_the_mean_over_the_reply(tmp_path, url, monkeypatch, behind):
    monkeypatch.setattr(Handler, "behind_turns", behind)  # ChatML sets a line's end behind what ends a turn
    assert evaluate(tmp_path, url) == 0
    for record in records(tmp_path):
        # The words of the option, and the end of the turn, which stands where the question's own prompt has none.
        means = [sum(map(len, [*o.split(), "a"])) / (len(o.split()) + 1) for o in record["options"]]
        assert record["losses"] == pytest.approx(means)


def test_a_server_without_log_probabilities_and_an_unknown_model_are_one_line(tmp_path, url, capsys, monkeypatch):
    monkeypatch.setattr(Handler, "gives_logprobs", False)
    assert evaluate(tmp_path, url) == 2
    assert "prompt_logprobs" in capsys.readouterr().err.splitlines()[-1]
    assert evaluate(tmp_path / "b", f"{url}/chat/completions", "--model", "other") == 2
    assert "has no model 'other'; it has served" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(Handler, "reply", staticmethod(lambda body: (400, "Unrecognized argument: prompt_logprobs")))
    assert evaluate(tmp_path / "c", url) == 2
    assert "likelihood takes prompt_logprobs, --scoring generate does not" in capsys.readouterr().err.splitlines()[-1]


def replies(monkeypatch, reply):
    monkeypatch.setattr(Handler, "reply", staticmethod(reply))


def report(folder):
    return json.loads((folder / "run/report.json").read_text())


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "<think>A? No, it is C.</think>\nB"}, "B"),
        ({"content": "A? No, it is C.</think>B"}, "B"),  # where the template opens the reasoning
        ({"content": "<Thinking>A</Thinking> B"}, "B"),
        ({"content": "◁think▷A◁/think▷B"}, "B"),
        ({"content": "B", "reasoning_content": "A?"}, "B"),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "B"}]}, "B"),
        ({"content": None, "refusal": "I cannot help."}, "I cannot help."),
    ],
)
def test_the_answer_is_what_follows_the_reasoning(message, text, tmp_path, url, monkeypatch):
    replies(monkeypatch, lambda body: dict(message))
    assert evaluate(tmp_path, url, "--scoring", "generate") == 0
    assert {record["text"] for record in records(tmp_path)} == {text}
    told = report(tmp_path)
    assert ("without the reasoning" in told["protocol"]) == (text == "B" and "thinking" not in str(message))
    assert told.get("replies", {}).get("withheld", 0) == (5 if "refusal" in message else 0)


@pytest.mark.parametrize(
    "reply",
    [
        {"content": None, "reasoning_content": "Let me see", "finish_reason": "length"},
        {"content": "", "finish_reason": "length"},
        {"content": "<think>Let me see", "finish_reason": "length"},
        (400, "Could not finish the message because max_tokens or model output limit was reached."),
    ],
)
def test_an_answer_that_all_went_into_reasoning_is_told(reply, tmp_path, url, monkeypatch, capsys, caplog):
    replies(monkeypatch, lambda body: copy(reply) if "cup?" in str(body) else {"content": "B"})
    assert evaluate(tmp_path, url, "--scoring", "generate", "--max-new-tokens", "77") == 0
    assert {body["max_tokens"] for body in Handler.seen} == {77}
    spent = sum("cup?" in str(body) for body in Handler.seen)
    assert report(tmp_path)["replies"]["without_answer"] == spent == 1 and report(tmp_path)["max_new_tokens"] == 77
    assert "1 answer(s) are empty because all 77 new tokens went into reasoning" in capsys.readouterr().out
    assert "see --max-new-tokens" in caplog.text


def test_parameters_that_the_server_refuses_are_left_out_also_by_requests_under_way(tmp_path, url, monkeypatch, capsys):
    def picky(body):
        if "max_tokens" in body:
            return 400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        if "temperature" in body:
            return 400, "Unsupported value: 'temperature' does not support 0 with this model."
        return {"content": "B"}

    replies(monkeypatch, picky)
    monkeypatch.setattr(Handler, "lists_models", False)
    assert evaluate(tmp_path, url, "--scoring", "generate") == 0
    assert {record["text"] for record in records(tmp_path)} == {"B"}
    assert report(tmp_path)["replies"] == {"own_temperature": 5}
    assert "5 answer(s) were drawn at the server's own temperature" in capsys.readouterr().out


@pytest.mark.parametrize("scoring", ["generate", "likelihood"])
def test_a_question_that_the_server_refuses_does_not_end_every_run(scoring, tmp_path, url, monkeypatch, capsys):
    refusal = 400, "At most 0 image(s) may be provided."
    replies(monkeypatch, lambda body: refusal if "cup?" in str(body) else {"content": "B"})
    assert evaluate(tmp_path, url, "--scoring", scoring) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "question direct_attributes/sa_1: " in error and "At most 0 image(s)" in error and "--on-bad-image" in error
    flags = ("--scoring", scoring, "--on-bad-image", "skip")
    if scoring == "generate":
        assert len(records(tmp_path)) == 4  # answered at the same time, and kept
    Handler.seen.clear()
    assert evaluate(tmp_path, url, *flags) == 0
    asked = {str(body["messages"][0]) for body in Handler.seen}
    assert len(asked) == 1 or scoring == "likelihood"
    (refused,) = [record for record in records(tmp_path) if "server_refused" in record]
    assert refused["correct"] is False and refused["text"] == ""
    (told,) = report(tmp_path)["server_refused"].items()
    assert told[0] == "direct_attributes/sa_1" and "At most 0 image(s)" in told[1]
    assert "1 question(s) count as wrong because the server refused them" in capsys.readouterr().out
    replies(monkeypatch, lambda body: {"content": "B"})
    Handler.seen.clear()
    assert evaluate(tmp_path, url, *flags) == 0  # asked again, and nothing else
    assert len({str(body["messages"][0]) for body in Handler.seen}) == 1 and "server_refused" not in report(tmp_path)
    replies(monkeypatch, lambda body: refusal)
    assert evaluate(tmp_path / "all", url, *flags) == 2
    assert "refused every question" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("failure", [(401, "key expired"), (404, "no such model"), (403, "quota")])
def test_a_server_that_fails_on_the_way_takes_no_answer_along(failure, tmp_path, url, monkeypatch, capsys):
    def reply(body):
        while "cup?" in str(body) and len(Handler.seen) < 5:
            time.sleep(0.01)
        return failure if "cup?" in str(body) else {"content": "B"}

    replies(monkeypatch, reply)
    flags = ("--scoring", "generate", "--on-bad-image", "skip")
    assert evaluate(tmp_path, url, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert failure[1] in error and url in error and "--on-bad-image" not in error
    assert len(records(tmp_path)) == 4 and not (tmp_path / "run/report.json").exists()
    replies(monkeypatch, lambda body: {"content": "B"})
    Handler.seen.clear()
    assert evaluate(tmp_path, url, *flags) == 0
    assert len(Handler.seen) == 1 and len(records(tmp_path)) == 5


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({"finish_reason": "error", "error": {"code": 502, "message": "upstream died"}}, "upstream died"),
        ({"finish_reason": "abort"}, "finish_reason abort"),
        ({"message": None}, "no chat completion"),
    ],
)
def test_a_reply_that_was_broken_off_is_no_answer(choice, named, tmp_path, url, monkeypatch, capsys):
    send = Handler.send

    def broken(self, value, status=200):
        if "choices" in value:
            value["choices"][0].update({"message": {"role": "assistant", "content": "The an"}, **choice})
        send(self, value, status)

    monkeypatch.setattr(Handler, "send", broken)
    assert evaluate(tmp_path, url, "--scoring", "generate") == 2
    assert named in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "run/predictions.jsonl").exists()
    monkeypatch.setattr(Handler, "send", send)
    assert evaluate(tmp_path, url, "--scoring", "generate") == 0
    assert {record["text"] for record in records(tmp_path)} == {"B"}
