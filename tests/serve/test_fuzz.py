"""Requests made from the served OpenAPI schema, and hostile files in random order: no 5xx, no growth of memory.

``LLAVA_S2_FUZZ=1000`` makes it a thousand requests of each kind.
"""

import base64
import os
import random

import httpx
import psutil
import pytest
import schemathesis
from api_server import KEY, NAME
from hostile import HOSTILE, encoded
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

REQUESTS = int(os.environ.get("LLAVA_S2_FUZZ", "60"))
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="session")
def served_schema(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=AUTHORIZED)


schema = schemathesis.pytest.from_fixture("served_schema")


@schema.parametrize()
@settings(max_examples=REQUESTS // 5 + 1, deadline=None, suppress_health_check=list(HealthCheck))
def test_requests_from_the_schema(case):
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = NAME  # or each would end at the unknown model
        for bound in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(bound), int) and body[bound] > 3:
                body[bound] = 3
        body.setdefault("max_tokens", 3)
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    if isinstance(body, dict) and body.get("stream") is True:
        checks = [not_a_server_error]
    case.call_and_validate(headers=AUTHORIZED, checks=checks, timeout=60)


def test_hostile_files_leave_no_memory_behind(server):
    process, chance = psutil.Process(server.process.pid), random.Random(0)
    files = {name: base64.b64encode(make()).decode() for name, (make, _) in HOSTILE.items()}
    good = base64.b64encode(encoded()).decode()

    with httpx.Client(base_url=server.url, headers=AUTHORIZED, timeout=60) as made:

        def ask(data):
            part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
            body = {"model": NAME, "messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
            return made.post("/v1/chat/completions", json=body).status_code

        for data in files.values():
            assert ask(data) == 400
        assert ask(good) == 200
        before = process.memory_info().rss
        for _ in range(REQUESTS):
            assert ask(files[chance.choice(list(files))]) == 400
        assert ask(good) == 200
    assert process.memory_info().rss - before < 100 << 20
