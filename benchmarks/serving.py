"""Tokens a second of our server, and of vLLM beside it, on the same model and cores.

    python benchmarks/serving.py MODEL [--vllm-python vllm-env/bin/python] [--streams 1 8 32] [--threads N]

MODEL is a full checkpoint in the native format. Each request shows a new image. The servers are started one after the
other, on the loopback, and stopped. The last line of stdout is one JSON object.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

PORT = 18_321


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--vllm-python", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--requests", type=int, default=3, help="of each stream")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    ours = [sys.executable, "-m", "llava_s2.cli", "serve", "--model", str(args.model), "--port", str(PORT), "--no-auth"]
    ours += ["--dtype", "float32", *(["--threads", str(args.threads)] if args.threads else [])]
    servers = {"llava-s2": ours}
    if args.vllm_python:
        command = [str(args.vllm_python), "-m", "vllm.entrypoints.openai.api_server", "--port", str(PORT)]
        command += ["--model", str(args.model), "--model-impl", "transformers", "--dtype", "float32"]
        command += ["--chat-template-content-format", "openai", "--max-model-len", "2048", "--max-num-seqs", "32"]
        servers["vllm"] = command
    result: dict[str, Any] = {"threads": args.threads, "cores": os.cpu_count()}
    for name, command in servers.items():
        process = subprocess.Popen(
            command, stdout=sys.stderr, stderr=sys.stderr, env={"HF_HUB_OFFLINE": "1", **os.environ}
        )
        try:
            asyncio.run(_ready(process))
            result[name] = {}
            for streams in args.streams:
                rate = asyncio.run(_rate(streams, args.requests, args.new_tokens))
                result[name][streams] = round(rate, 1)
                print(f"{name}: {streams} streams, {rate:.1f} tokens a second", file=sys.stderr)
        finally:
            process.terminate()
            process.wait(90)
    print(json.dumps(result))


async def _ready(process: subprocess.Popen) -> None:
    async with httpx.AsyncClient() as client:
        while process.poll() is None:
            try:
                if (await client.get(f"http://127.0.0.1:{PORT}/health")).status_code == 200:
                    return
            except httpx.HTTPError:
                await asyncio.sleep(0.5)
    raise SystemExit("the server ended before it was ready")


async def _rate(streams: int, requests: int, new_tokens: int) -> float:
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as client:

        async def ask(seed: int) -> int:
            pixels = np.random.default_rng(seed).integers(0, 256, (336, 336, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "Describe the image."},
            ]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": new_tokens, "temperature": 0}
            answer = await client.post(f"http://127.0.0.1:{PORT}/v1/chat/completions", json=body)
            return int(answer.raise_for_status().json()["usage"]["completion_tokens"])

        async def stream(number: int) -> int:
            return sum([await ask(1000 * streams + 100 * number + request) for request in range(requests)])

        await ask(streams)  # warm
        start = time.perf_counter()
        tokens = await asyncio.gather(*(stream(number) for number in range(streams)))
        return sum(tokens) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
