"""Many clients at once against ``llava-s2 serve``: nothing lost, how fast, how much memory.

    python benchmarks/api_load.py --clients 64 --seconds 120 [-- serve's flags]

Starts the server itself, on a free port of the loopback, and stops it. Each client asks one question after another,
half of them streamed, about images that repeat now and then. The last line of stdout is one JSON object.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image, ImageDraw

QUESTIONS = ["What is the color of the circle?", "What is the color of the square?", "Describe the image.", "Hello!"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("serve", nargs="*", help="flags of llava-s2 serve")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the server ends, too
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            command = [sys.executable, "-m", "llava_s2.cli", "serve", "--port", "0", *args.serve]
            process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            url = _wait(process, log)
            result = asyncio.run(_load(url, args, psutil.Process(process.pid)))
            process.send_signal(signal.SIGTERM)
            result["exit_code"] = process.wait(60)
        finally:
            process.kill()
            process.wait()
    print(json.dumps(result))


def _wait(process: subprocess.Popen, log: Path) -> str:
    while process.poll() is None:
        if found := re.search(r"running on (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.2)
    raise SystemExit(log.read_text())


def _images() -> list[str]:
    chance, urls = random.Random(0), []
    for _ in range(200):
        image = Image.new("RGB", (336, 336), "white")
        draw = ImageDraw.Draw(image)
        for shape in (draw.ellipse, draw.rectangle):
            x, y = chance.randrange(300), chance.randrange(300)
            shape((x, y, x + 30, y + 30), fill=chance.choice(["red", "green", "blue", "yellow", "black"]))
        file = io.BytesIO()
        image.save(file, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return urls


async def _load(url: str, args: argparse.Namespace, process: psutil.Process) -> dict[str, Any]:
    images, tally = _images(), {"answered": 0, "refused": 0, "lost": 0}
    seconds: list[float] = []
    memory: list[int] = []
    limits = httpx.Limits(max_connections=args.clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        end = time.monotonic() + args.seconds

        async def ask(chance: random.Random) -> None:
            parts: list[Any] = [{"type": "text", "text": chance.choice(QUESTIONS)}]
            parts.append({"type": "image_url", "image_url": {"url": chance.choice(images)}})
            body = {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": args.new_tokens}
            start = time.monotonic()
            try:
                answer = await client.post("/v1/chat/completions", json={**body, "stream": chance.random() < 0.5})
                ended = "[DONE]" in answer.text or '"finish_reason"' in answer.text
                if answer.status_code == 429:
                    tally["refused"] += 1
                    await asyncio.sleep(float(answer.headers["retry-after"]))
                elif answer.status_code == 200 and ended:
                    tally["answered"] += 1
                    seconds.append(time.monotonic() - start)
                else:
                    tally["lost"] += 1
            except httpx.HTTPError:
                tally["lost"] += 1

        async def visitor(number: int) -> None:
            chance = random.Random(number)
            while time.monotonic() < end:
                await ask(chance)

        async def watch() -> None:
            while time.monotonic() < end:
                memory.append(process.memory_info().rss)
                await asyncio.sleep(1)

        begun = time.monotonic()
        await asyncio.gather(watch(), *map(visitor, range(args.clients)))
        took = time.monotonic() - begun
        metrics = dict(
            line.rsplit(" ", 1) for line in (await client.get("/metrics")).text.splitlines() if not line.startswith("#")
        )
    number = {name: float(value) for name, value in metrics.items()}
    quarter = max(len(memory) // 4, 1)
    return {
        "clients": args.clients,
        "seconds": round(took, 1),
        **tally,
        "answers_per_second": round(tally["answered"] / took, 2),
        "tokens_per_second": round(number["llava_s2_completion_tokens_total"] / took, 1),
        "median_seconds": round(statistics.median(seconds), 2) if seconds else None,
        "slowest_seconds": round(max(seconds), 2) if seconds else None,
        "mean_batch": round(number["llava_s2_batch_size_sum"] / number["llava_s2_batch_size_count"], 1),
        "tower_runs": int(number["llava_s2_image_cache_misses_total"]),
        "cache_hits": int(number["llava_s2_image_cache_hits_total"]),
        "memory_mb": {
            "second_quarter_peak": max(memory[quarter : 2 * quarter]) >> 20,
            "last_quarter_peak": max(memory[-quarter:]) >> 20,
        },
    }


if __name__ == "__main__":
    main()
