"""A thousand hostile images and bodies against a running server, while another client measures how long it waits.

    llava-s2 serve --port 8000 &
    python benchmarks/hostile_load.py http://127.0.0.1:8000 [--requests 1000] [--clients 8]

The last line of stdout is one JSON object: statuses, the other client's slowest answers, memory before and after.
"""

import argparse
import asyncio
import base64
import collections
import json
import random
import struct
import sys
import time
import zlib
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
from hostile import HOSTILE, bomb, chunk, encoded, png


def exif_bomb(tags: int, size: int) -> bytes:
    entries = b"".join(struct.pack("<HHII", 0x8000 + tag, 7, size, 8) for tag in range(tags))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(size)
    data = encoded(kind="JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def images() -> list[bytes]:
    progressive = encoded(kind="JPEG", progressive=True)
    made = [make() for make, _ in HOSTILE.values()]
    made += [bomb(9000), exif_bomb(2000, 30_000), progressive[:-2] + b"\xff\xda\0\x08\x01\x01\0\x01\x3f\x10\0\0" * 2000]
    made += [png(8, 8, b"", extra=chunk(b"tEXt", b"a\0b") * 110_000)]
    made += [encoded(kind="GIF")[:-1] + b"\x21\xfe" + b"\1a" * 110_000 + b"\0;"]
    made += [png(8, 8, zlib.compress(bytes(200)), extra=chunk(b"eXIf", exif_bomb(3000, 1 << 20)[30:]))]
    return made


def bodies() -> list[bytes]:
    text = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    plain = json.dumps(text).encode()[:-1]
    return [
        plain + b"".join(b',"k%d":1' % n for n in range(500_000)) + b"}",
        plain + b',"x":' + b"[" * 1_000_000 + b"}",
        plain + b',"x":[' + b"{}," * 1_000_000 + b"1]}",
        plain + b',"x":' + b"9" * 1_000_000 + b"}",
        b"\xff" * 1_000_000,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(_load(args.url, args.requests, args.clients))))


async def _load(url: str, requests: int, clients: int) -> dict:
    rng, statuses, waits = random.Random(0), collections.Counter[int](), []
    shown = [
        json.dumps(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image_url",
                                "image_url": f"data:image/png;base64,{base64.b64encode(data).decode()}",
                            }
                        ],
                    }
                ],
                "max_tokens": 1,
            }
        ).encode()
        for data in images()
    ]
    everything = shown + bodies()
    left = iter(range(requests))
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def attack() -> None:
            for _ in left:
                body = rng.choice(everything)
                try:
                    answer = await client.post(
                        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
                    )
                    statuses[answer.status_code] += 1
                except httpx.HTTPError:
                    statuses[0] += 1

        async def another() -> None:
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
            while True:
                start = time.perf_counter()
                (await client.post("/v1/chat/completions", json=body)).raise_for_status()
                waits.append(time.perf_counter() - start)
                await asyncio.sleep(0.1)

        measuring = asyncio.create_task(another())
        await asyncio.gather(*(attack() for _ in range(clients)))
        measuring.cancel()
    waits.sort()
    return {
        "statuses": dict(statuses),
        "other_client": {"answers": len(waits), "median": waits[len(waits) // 2], "slowest": waits[-3:]},
    }


if __name__ == "__main__":
    main()
