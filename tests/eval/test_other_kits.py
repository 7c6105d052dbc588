"""What other evaluation kits get: the model for lmms-eval and the class of the VLMEvalKit page, on stand-ins of theirs.

The stand-ins are the little of their interfaces that is used; ``make lmms-eval`` runs lmms-eval itself.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tomllib
import torch
from PIL import Image

from llava_s2.data.image_decoding import open_image
from llava_s2.errors import InputError
from llava_s2.model.inference import assistant_message, encode_prompts, user_message
from llava_s2.model.labels import encode_messages

GOLDEN = Path(__file__).parents[1] / "golden/llava_tiny"
MODEL, TOWER = str(GOLDEN / "llava-tiny-s2"), str(GOLDEN / "clip-tiny")
QUESTIONS = ["What is in the picture?", "Which colour is it?", "How many are there, as far as one can see?"]


def greedy(loaded, question, picture, length):
    """The answer by the plain loop: the whole sequence through the model for each token."""
    model, processor = loaded
    inputs = encode_prompts(processor, [[user_message(question, 1)]], [picture])
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    start = ids.shape[1]
    with torch.inference_mode():
        for _ in range(length):
            logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[:, -1]
            logits[:, processor.image_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return processor.decode(ids[0, start:], skip_special_tokens=True).strip()


@pytest.fixture
def lmms(monkeypatch):
    """``llava_s2.eval.lmms_eval_model`` on stand-ins of lmms_eval's modules."""

    class Base:
        def __init__(self):
            self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
            self.task_dict: dict[str, Any] = {}

    @dataclass
    class GenerationResult:
        text: Any

    modules = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult, "Instance": SimpleNamespace},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": SimpleNamespace},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "llava_s2.eval.lmms_eval_model", raising=False)
    yield import_module("llava_s2.eval.lmms_eval_model")
    sys.modules.pop("llava_s2.eval.lmms_eval_model")


@pytest.fixture
def model(lmms, loaded, monkeypatch):
    calls = []
    monkeypatch.setattr(lmms, "load_pretrained", lambda *args, **kwargs: calls.append((args, kwargs)) or loaded)
    model = lmms.LlavaS2(MODEL, vision_tower=TOWER, batch_size="2", device="cpu", max_batch_size=None)
    assert calls == [((MODEL, None), {"vision_tower": TOWER, "dtype": "float32", "device_map": {"": "cpu"}})]
    pictures = [Image.open(GOLDEN / f"images/{n}.png").convert("RGB") for n in range(3)]
    model.task_dict = {"task": {"test": [{"image": picture} for picture in pictures]}}
    return model


def requests(second, context=lambda question: question):
    """lmms-eval's arguments: context, generation arguments or continuation, visuals, document, task, split."""
    return [
        SimpleNamespace(args=(context(question), second(n), lambda doc: [doc["image"]], n, "task", "test"))
        for n, question in enumerate(QUESTIONS)
    ]


def test_lmms_answers_are_greedy_decodings(model, loaded):
    pictures = [doc["image"] for doc in model.task_dict["task"]["test"]]
    expected = [
        greedy(loaded, q, p, 4 if n < 2 else 2) for n, (q, p) in enumerate(zip(QUESTIONS, pictures, strict=True))
    ]
    lengths = [4, 4, 2]
    assert model.generate_until(requests(lambda n: {"max_new_tokens": lengths[n], "temperature": 0})) == expected
    placed = requests(lambda n: {"max_new_tokens": lengths[n]}, lambda question: f"<image>{question}")
    assert model.generate_until(placed) == expected
    end = expected[0][2]
    stopped = model.generate_until(requests(lambda n: {"max_new_tokens": 4, "until": [end]}))
    assert stopped[0] == expected[0].split(end)[0].strip()


def test_lmms_choices_are_ranked_by_mean_cross_entropy(model, loaded):
    net, processor = loaded
    replies = ["a dog", " red ", "nothing at all"]
    for given in (lambda n: replies[n], lambda n: lambda doc: replies[n]):
        results = model.loglikelihood(requests(given))
        for number, (question, result) in enumerate(zip(QUESTIONS, results, strict=True)):
            picture = model.task_dict["task"]["test"][number]["image"]
            messages = [user_message(question, 1), assistant_message(replies[number].strip())]
            row = encode_messages(messages, processor, str(processor.chat_template))
            pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
                loss = net(input_ids=ids, labels=labels, pixel_values=pixels).loss
            assert result.text == (pytest.approx(loss.item(), abs=1e-3), False)


def test_lmms_refuses_what_it_cannot_see(model, lmms):
    video = [SimpleNamespace(args=("What?", {}, lambda doc: ["film.mp4"], 0, "task", "test"))]
    with pytest.raises(InputError, match="document 0: shows a str; llava_s2 sees images only"):
        model.generate_until(video)
    with pytest.raises(InputError, match="one round"):
        model.generate_until_multi_round(video)
    with pytest.raises(InputError, match="whole number"):
        lmms.LlavaS2(MODEL, vision_tower=TOWER, batch_size="auto", device="cpu")


def test_lmms_finds_the_model_by_its_entry_point(lmms):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"]["lmms_eval.models"]["llava_s2"].partition(":")
    manifest = getattr(import_module(module), function)()
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert manifest.model_id == "llava_s2" and getattr(import_module(module), name) is lmms.LlavaS2


def test_the_class_of_the_vlmevalkit_page_answers(tmp_path, loaded, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/vlmevalkit.md").read_text()
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit/__init__.py").write_text("")
    (tmp_path / "kit/base.py").write_text("class BaseModel:\n    pass\n")
    (tmp_path / "kit/llava_s2.py").write_text(page.split("```text\n")[1].split("```")[0].replace("=512", "=4"))
    monkeypatch.syspath_prepend(tmp_path)
    model = import_module("kit.llava_s2").LLaVAS2(MODEL, vision_tower=TOWER, dtype="float32")
    picture = GOLDEN / "images/0.png"
    message = [{"type": "image", "value": str(picture)}, {"type": "text", "value": QUESTIONS[0]}]
    assert model.generate_inner(message, "MMMU") == greedy(loaded, QUESTIONS[0], open_image(picture), 4)
