"""Speed and answers of int8 on a CPU beside float32 and bfloat16, on the embedded default, in one run.

    python benchmarks/int8.py --output benchmarks/results/int8.json

Three pieces of work a model: the answers of LLaVA records about generated scenes (an image each, all of its tokens
at once), a page of English (prefill of 1,000 tokens), and 50 tokens one after the other. Top-1 agreement is the share
of positions at which the likeliest next token is float32's; the cross-entropy is that of the true next token. With
torchao installed (``pip install torchao``) its int8 with dynamic activations, not compiled, is measured too.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llava_s2 import encode_conversation, load_pretrained
from llava_s2.data.image_decoding import open_image
from llava_s2.model.embedded import default_model
from llava_s2.synthetic.scene_files import write_instructions
from llava_s2.synthetic.scenes import SceneConfig

_TEXT = Path(__file__).parents[1] / "README.md"
_TOKENS, _NEW_TOKENS = 1000, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--images", type=int, default=30, help="default: %(default)s")
    args = parser.parse_args()
    models: dict[str, Callable[[], Any]] = {
        "float32": lambda: load_pretrained(default_model(), dtype="float32"),
        "bfloat16": lambda: load_pretrained(default_model(), dtype="bfloat16"),
        "int8": lambda: load_pretrained(default_model(), dtype="float32", quantization="int8"),
        "int8-all": lambda: load_pretrained(default_model(), dtype="float32", quantization="int8-all"),
    }
    if find_spec("torchao"):
        models["torchao"] = _torchao
    with tempfile.TemporaryDirectory() as folder:
        config = SceneConfig(side=(1000, 1000))
        write_instructions(Path(folder) / "scenes", args.images, config=config, first_seed=900_000)
        rows, wanted = {}, None
        for name, load in models.items():
            seconds, logits, truth = measure(*load(), Path(folder) / "scenes")
            wanted = wanted or logits
            rows[name] = {work: {"seconds": round(seconds[work], 2)} for work in seconds} | {
                work: {
                    "seconds": round(seconds[work], 2),
                    "top1_agreement": round((found.argmax(-1) == wanted[work].argmax(-1)).double().mean().item(), 4),
                    "cross_entropy": round(cross_entropy(found, truth[work]).item(), 4),
                }
                for work, found in logits.items()
            }
            print(name, rows[name], flush=True)
    for row in rows.values():
        for work, figures in row.items():
            figures["speed_over_float32"] = round(rows["float32"][work]["seconds"] / figures["seconds"], 2)
    result = {"command": "python benchmarks/int8.py", "processor": _processor(), "threads": torch.get_num_threads()}
    text = json.dumps({**result, "torch": torch.__version__, "models": rows}, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


@torch.inference_mode()
def measure(model: Any, processor: Any, scenes: Path) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Seconds of each piece of work; logits (positions, V) in float32 and true ids (positions,) of the first two."""
    records = json.loads((scenes / "train.json").read_text(encoding="utf-8"))
    examples = []
    for record in records:
        encoded = encode_conversation(record["conversations"], processor, "chatml")
        pixels = processor.image_processor([open_image(scenes / record["image"])], return_tensors="pt")["pixel_values"]
        examples.append((torch.tensor([encoded["input_ids"]]), torch.tensor(encoded["labels"]), pixels.to(model.dtype)))
    page = processor.tokenizer(_TEXT.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][:, :_TOKENS]
    model(input_ids=page[:, :50])  # warm

    seconds: dict[str, float] = {}
    start = time.perf_counter()
    answers = []
    for ids, labels, pixels in examples:
        positions = (labels != -100).nonzero()[:, 0]
        answers.append((model(input_ids=ids, pixel_values=pixels).logits[0, positions - 1].float(), ids[0, positions]))
    seconds["answers about images"] = time.perf_counter() - start
    start = time.perf_counter()
    text = model(input_ids=page).logits[0, :-1].float()
    seconds["prefill"] = time.perf_counter() - start
    prompt = page[:, :200]
    arguments = {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS, "do_sample": False}
    model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1)
    start = time.perf_counter()
    model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **arguments)
    seconds["prefill of 200 and 50 new tokens"] = time.perf_counter() - start
    logits = {"answers about images": torch.cat([part for part, _ in answers]), "prefill": text}
    return seconds, logits, {"answers about images": torch.cat([ids for _, ids in answers]), "prefill": page[0, 1:]}


def _torchao() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model, processor = load_pretrained(default_model(), dtype="float32")
    quantize_(model.model.language_model, Int8DynamicActivationInt8WeightConfig())
    return model, processor


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
