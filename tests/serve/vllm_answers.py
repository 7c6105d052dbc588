"""``make vllm``: greedy answers of a vLLM server against those of `generate`.

    python tests/serve/vllm_answers.py reference FOLDER        # in the project's environment
    vllm-env/bin/python tests/serve/vllm_answers.py compare FOLDER [VLLM FLAGS …]

The first writes the embedded default as a full checkpoint, and a random LoRA over it, with the answers of both; the
second serves them and asks.
"""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

QUESTIONS = [
    ("What is the color of the circle?", [0]),
    ("Describe the image.", [1]),
    ("What is the color of the circle?", [0]),  # an image that was shown before
    ("What is the capital of France?", []),
    ("What is the difference?", [0, 1]),
    ("How many shapes are there?", [2]),
]
NEW_TOKENS = 24
PORT = 18_123


def write_reference(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from PIL import Image, ImageDraw

    from llava_s2.formats.convert import convert
    from llava_s2.formats.load import load_pretrained
    from llava_s2.model.embedded import shipped_model
    from llava_s2.model.inference import encode_prompts, token_arguments, user_message

    images = []
    for number, colour in enumerate(("red", "green", "blue")):
        image = Image.new("RGB", (336, 336), (90 + 40 * number,) * 3)
        draw = ImageDraw.Draw(image)
        draw.ellipse((40, 60 + 50 * number, 80, 100 + 50 * number), fill=colour)
        draw.rectangle((200, 100, 240, 140), fill="yellow")
        images.append(image)
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    model, processor = load_pretrained(shipped_model(), dtype="float32")
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")

    def answers(model: Any, processor: Any) -> list[str]:
        found = []
        for text, shown in QUESTIONS:
            inputs = encode_prompts(processor, [[user_message(text, len(shown))]], [images[number] for number in shown])
            output = model.generate(
                **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, **token_arguments(model, processor)
            )[0, inputs["input_ids"].shape[1] :]
            found.append(processor.decode(output, skip_special_tokens=True).strip())
        return found

    without = answers(model, processor)
    torch.manual_seed(0)
    settings = LoraConfig(
        r=4, lora_alpha=32, target_modules=r".*language_model.*(q|v)_proj", modules_to_save=["multi_modal_projector"]
    )
    adapted = get_peft_model(load_pretrained(folder / "model", dtype="float32")[0], settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(str(folder / "adapter"))
    convert(folder / "adapter", folder / "lora", "lora")
    told = {"model": without, "lora": answers(*load_pretrained(folder / "adapter", dtype="float32"))}
    assert told["model"] != told["lora"]
    (folder / "answers.json").write_text(json.dumps(told))


def compare(folder: Path, flags: list[str]) -> bool:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(PORT)]
    command += ["--model", str(folder / "model"), "--model-impl", "transformers", "--dtype", "float32"]
    command += ["--chat-template-content-format", "openai", "--limit-mm-per-prompt", '{"image": 3}']
    command += ["--max-model-len", "2048", "--enforce-eager", "--served-model-name", "model"]
    command += ["--enable-lora", "--lora-modules", f"lora={folder / 'lora'}", *flags]
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env={**defaults, **os.environ})
    try:
        _wait_until_healthy(server)
        right = 0
        expected = json.loads((folder / "answers.json").read_text())
        for model, answers in expected.items():
            for (text, shown), answer in zip(QUESTIONS, answers, strict=True):
                for stream in (False, True):
                    got = _ask(folder, model, text, shown, stream)
                    right += got == answer
                    verdict = "same" if got == answer else "DIFFERENT"
                    print(f"{verdict} ({model}{', stream' * stream}): {got!r}", flush=True)
    finally:
        server.terminate()
        server.wait(60)
    asked = 2 * len(QUESTIONS) * len(expected)
    print(f"{right} of {asked} answers equal those of generate")
    return right == asked


def _wait_until_healthy(server: subprocess.Popen, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit("vLLM ended before it was ready")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise SystemExit("vLLM did not get ready")


def _ask(folder: Path, model: str, text: str, shown: list[int], stream: bool) -> str:
    urls = [
        "data:image/png;base64," + base64.b64encode((folder / f"{number}.png").read_bytes()).decode()
        for number in shown
    ]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": text}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": NEW_TOKENS,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions",
        json.dumps({**body, "stream": stream}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        if not stream:
            return json.load(response)["choices"][0]["message"]["content"].strip()
        lines = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: {")]
        return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines).strip()


if __name__ == "__main__":
    _, mode, place, *more = sys.argv
    if mode == "reference":
        write_reference(Path(place))
    elif not compare(Path(place), more):
        raise SystemExit(1)
