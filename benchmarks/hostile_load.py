"""Hostile images, bodies and connections against ``llava-s2 serve``, while another client measures how long it waits.

    python benchmarks/hostile_load.py [--requests 1000] [--clients 8] [-- serve's flags]

Starts the server itself, on a free port of the loopback, and stops it. The other client asks two questions in turn, one
of text and one about a new small photograph. The last line of stdout is one JSON object.
"""

import argparse
import asyncio
import base64
import collections
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image
from running_server import megabytes, running_server

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
from hostile import COSTLY, HOSTILE, encoded

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--side", type=int, default=7000, help="of the images that cost more than their size says")
    parser.add_argument("serve", nargs="*", help="flags of llava-s2 serve")
    args = parser.parse_args()
    attacks = list(_attacks(args.side))
    print(f"{len(attacks)} kinds", file=sys.stderr)
    with running_server(["--max-new-tokens", "1", *args.serve]) as (url, process):
        result = asyncio.run(_run(url, process, attacks, args.requests, args.clients))
    print(json.dumps({"requests": args.requests, "clients": args.clients, "kinds": len(attacks), **result}))


def _chat(image: bytes, kind: str = "png") -> bytes:
    url = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return json.dumps({"messages": [{"role": "user", "content": parts}], "max_tokens": 1}).encode()


def _attacks(side: int) -> Iterator[tuple[str, bytes]]:
    """Names and bodies; those whose name begins with ``raw`` are sent as they are, to a connection of their own."""
    for name, (make, _) in HOSTILE.items():
        yield name, _chat(make())
    for name, costly in COSTLY.items():
        yield name, _chat(costly(side))
    plain = json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}).encode()[:-1]
    yield "keys", plain + b"".join(b',"k%d":1' % n for n in range(500_000)) + b"}"
    yield "deep", plain + b',"x":' + b"[" * 1_000_000 + b"}"
    yield "objects", plain + b',"x":[' + b"{}," * 1_000_000 + b"1]}"
    yield "digits", plain + b',"x":' + b"9" * 1_000_000 + b"}"
    yield "escapes", plain + b',"x":"' + b"\\u0041" * 3_000_000 + b'"}'
    yield "no text", b"\xff" * 1_000_000
    yield "long text", json.dumps({"messages": [{"role": "user", "content": "a " * 10_000_000}]}).encode()
    yield "messages", json.dumps({"messages": [{"role": "user", "content": "a"}] * 1024}).encode()
    yield "marks", json.dumps({"messages": [{"role": "user", "content": "<image>" * 1000}]}).encode()
    yield "stops", json.dumps({"messages": [{"role": "user", "content": "a"}], "stop": ["a" * 256] * 16}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    yield "raw length too long", head + b"Content-Length: 1000\r\n\r\n" + plain
    yield "raw length too short", head + b"Content-Length: 5\r\n\r\n" + plain + b"}"
    yield "raw length below 0", head + b"Content-Length: -5\r\n\r\n" + plain + b"}"
    yield "raw two lengths", head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + plain
    yield "raw chunk of no length", head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    yield "raw chunk and length", head + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    yield "raw headers", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000 + b"\r\n"
    yield "raw half a head", b"GET /health HTT"
    yield "raw TLS", b"\x16\x03\x01\x02\x00\x01" + bytes(512)


async def _run(url: str, process: Any, attacks: list[tuple[str, bytes]], requests: int, clients: int) -> dict[str, Any]:
    rng, statuses = random.Random(0), collections.Counter[str]()
    waits: dict[str, list[float]] = {"text": [], "image": []}
    slow: list[tuple[float, str]] = []
    number = 0
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def ask(kind: str) -> float:
            nonlocal number
            number += 1
            body = json.dumps({"messages": [{"role": "user", "content": f"Hi {number}"}], "max_tokens": 1}).encode()
            if kind == "image":
                pixels = np.random.default_rng(number).integers(0, 256, (400, 600, 3), np.uint8)
                body = _chat(encoded(Image.fromarray(pixels), "JPEG"), "jpeg")
            start = time.perf_counter()
            (await client.post(CHAT, content=body, headers=JSON)).raise_for_status()
            return time.perf_counter() - start

        async def attack(left: Iterator[int]) -> None:
            for _ in left:
                name, body = rng.choice(attacks)
                start = time.perf_counter()
                if name.startswith("raw "):
                    statuses[await _raw(url, body)] += 1
                    continue
                try:
                    answer = await client.post(CHAT, content=body, headers=JSON)
                    status = str(answer.status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                statuses[status] += 1
                if status.startswith("5"):
                    print(f"{name}: {answer.text}", file=sys.stderr)
                slow.append((time.perf_counter() - start, name))

        async def another() -> None:
            while True:
                for kind, of in waits.items():
                    of.append(await ask(kind))
                    await asyncio.sleep(0.1)

        quiet = {kind: sorted([await ask(kind) for _ in range(12)]) for kind in waits}
        for _, body in attacks[:20]:  # what is started when it is first needed is there
            await client.post(CHAT, content=body, headers=JSON)
        before, start = megabytes(process), time.perf_counter()
        measuring, peak = asyncio.create_task(another()), before
        left = iter(range(requests))
        attacking = [asyncio.create_task(attack(left)) for _ in range(clients)]
        while not all(one.done() for one in attacking):
            if measuring.done():
                measuring.result()
            peak = max(peak, megabytes(process))
            await asyncio.sleep(0.2)
        took = time.perf_counter() - start
        measuring.cancel()
        await asyncio.sleep(3)
        (await client.get("/health")).raise_for_status()
        after = megabytes(process)
    return {
        "seconds": round(took, 1),
        "statuses": dict(sorted(statuses.items())),
        "other_client": {kind: {"quiet": _times(quiet[kind]), "attacked": _times(of)} for kind, of in waits.items()},
        "memory_mb": {"before": before, "peak": peak, "after": after},
        "slowest_attacks": [[name, round(took, 1)] for took, name in sorted(slow)[-3:]],
    }


def _times(seconds: list[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    return {
        "answers": len(ordered),
        "median": round(ordered[len(ordered) // 2], 2),
        "slowest": [round(one, 2) for one in ordered[-3:]],
    }


async def _raw(url: str, data: bytes) -> str:
    """The status of the answer to these bytes; ``closed`` where there is none, as for one that goes on too slowly."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(64), 40)
        return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP") else "closed"
    except (OSError, asyncio.TimeoutError):
        return "closed"
    finally:
        writer.close()


if __name__ == "__main__":
    main()
