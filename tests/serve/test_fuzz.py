"""Requests made from the served OpenAPI schema, and hostile files in random order: no 5xx, no growth of memory.

``LLAVA_S2_FUZZ=1000`` makes it a thousand requests of each kind.
"""

import base64
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import schemathesis
from api_server import KEY, NAME
from hostile import HOSTILE, encoded
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

REQUESTS = int(os.environ.get("LLAVA_S2_FUZZ", "60"))
CHAT = "/v1/chat/completions"
GOOD = base64.b64encode(encoded()).decode()
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def made_answerable(body):
    """What the schema cannot say is put right: who shows images and who may be silent, and that an image's URL leads to
    an image."""
    for message in body["messages"]:
        if message.get("content") is None:
            message["content"] = "?"
        for part in message["content"] if isinstance(message.get("content"), list) else []:
            if isinstance(part, dict) and part["type"] == "image_url":
                message["role"] = "user"
                part["image_url"] = f"data:image/png;base64,{GOOD}"
    body["messages"][-1]["role"] = "user"
    for name in ("continue_final_message", "add_generation_prompt"):
        body.pop(name, None)
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)


def ask(case, answerable):
    body = case.body
    if isinstance(body, dict):
        if isinstance(body.get("model"), str):
            body["model"] = NAME  # or each would end at the unknown model
        for bound in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(bound), int) and body[bound] > 3:
                body[bound] = 3
        if body.get("max_tokens") is None:
            body["max_tokens"] = 3
        if answerable:
            made_answerable(body)
    streams = isinstance(body, dict) and body.get("stream") is True
    case.call_and_validate(headers=AUTHORIZED, checks=CHECKS[:1] if streams else CHECKS, timeout=60)


def metric(server, name):
    text = httpx.get(f"{server.url}/metrics", headers=AUTHORIZED).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def test_requests_from_the_schema(server):
    # Not by schemathesis' pytest plugin, which this pytest does not get on with.
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=AUTHORIZED)
    operations = {operation.label: operation for operation in (found.ok() for found in schema.get_all_operations())}
    assert len(operations) == 6
    process, right, wrong = psutil.Process(server.process.pid), GenerationMode.POSITIVE, GenerationMode.NEGATIVE

    def send(label, mode, examples, answerable=False):
        limits = settings(
            max_examples=examples,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize="LLAVA_S2_FUZZ" not in os.environ,  # the suite is the same every time, a search is not
        )
        limits(given(case=operations[label].as_strategy(generation_mode=mode))(lambda case: ask(case, answerable)))()

    chat = f"POST {CHAT}"
    chats = f'llava_s2_responses_total{{path="{CHAT}"'
    send(chat, right, 20, answerable=True)
    before, memory = [metric(server, f"{chats}{status}") for status in ("", ',status="200"')], process.memory_info().rss
    send(chat, right, REQUESTS // 2, answerable=True)
    send(chat, right, REQUESTS // 4)
    send(chat, wrong, REQUESTS // 4)
    for label in operations.keys() - {chat}:
        send(label, right, REQUESTS // 20)
    sent, answered = (
        metric(server, f"{chats}{status}") - count for status, count in zip(("", ',status="200"'), before, strict=True)
    )
    assert sent >= 0.9 * REQUESTS and answered >= sent / 4  # not all of them end at the door
    assert process.memory_info().rss - memory < 100 << 20


def test_hostile_files_leave_no_memory_behind(server):
    process, chance = psutil.Process(server.process.pid), random.Random(0)
    files = {name: base64.b64encode(make()).decode() for name, (make, _) in HOSTILE.items()}

    with httpx.Client(base_url=server.url, headers=AUTHORIZED, timeout=60) as made:

        def status_of(data):
            part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
            body = {"model": NAME, "messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
            return made.post(CHAT, json=body).status_code

        for data in files.values():
            assert status_of(data) == 400
        assert status_of(GOOD) == 200
        before = process.memory_info().rss
        flat = [encoded(Image.new("RGB", (4000, 3000), (shade, 0, 0))) for shade in range(4)]  # 40 kB, 36 MB decoded
        with ThreadPoolExecutor(4) as clients:
            assert set(clients.map(status_of, [base64.b64encode(data).decode() for data in flat])) == {200}
        until = time.monotonic() + 60  # it is given back beside the answer, perhaps a moment later
        while process.memory_info().rss - before >= 100 << 20:
            assert time.monotonic() < until
            time.sleep(0.05)
        before = process.memory_info().rss
        for _ in range(REQUESTS):
            assert status_of(files[chance.choice(list(files))]) == 400
        assert status_of(GOOD) == 200
    assert process.memory_info().rss - before < 100 << 20
