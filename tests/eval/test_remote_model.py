"""``--model-url``: an OpenAI-compatible server answers in place of a local model."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from vstar_data import write_lettered, write_vstar

from llava_s2 import cli


class Handler(BaseHTTPRequestHandler):
    """Answers B; gives a prompt's words log-probabilities of minus their number of letters."""

    seen: list[dict] = []  # noqa: RUF012
    gives_logprobs = True

    def do_GET(self):
        self.send({"object": "list", "data": [{"id": "served", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        message = {"role": "assistant", "content": " B\n"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "served"}
        answer["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        if "prompt_logprobs" in body and self.gives_logprobs:
            words = ["<s>"]
            for turn in body["messages"]:
                parts = (
                    turn["content"]
                    if isinstance(turn["content"], list)
                    else [{"type": "text", "text": turn["content"]}]
                )
                words += [word for part in parts if part["type"] == "text" for word in part["text"].split()]
                words.append(turn["role"][0])
            answer["prompt_logprobs"] = [None, *({"7": {"logprob": -float(len(word))}} for word in words[1:])]
        self.send(answer)

    def send(self, value):
        self.send_response(200)
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
    data = write_lettered(write_vstar(folder / "vstar"))
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


def test_likelihood_is_the_mean_over_the_reply(tmp_path, url):
    assert evaluate(tmp_path, url) == 0
    for record in records(tmp_path):
        # The words of the option, and the end of the turn, which stands where the question's own prompt has none.
        means = [sum(map(len, [*o.split(), "a"])) / (len(o.split()) + 1) for o in record["options"]]
        assert record["losses"] == pytest.approx(means)


def test_a_server_without_log_probabilities_and_an_unknown_model_are_one_line(tmp_path, url, capsys, monkeypatch):
    monkeypatch.setattr(Handler, "gives_logprobs", False)
    assert evaluate(tmp_path, url) == 2
    assert "prompt_logprobs" in capsys.readouterr().err.splitlines()[-1]
    assert evaluate(tmp_path / "b", url, "--model", "other") == 2
    assert "has no model 'other'; it has served" in capsys.readouterr().err.splitlines()[-1]
