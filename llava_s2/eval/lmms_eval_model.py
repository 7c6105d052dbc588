"""Any checkpoint of ``load_pretrained`` as a model of lmms-eval: ``--model llava_s2 --model_args pretrained=M,base=B``.

lmms-eval (0.7) finds it by the entry point ``lmms_eval.models``; nothing here is imported otherwise.
"""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from llava_s2.errors import InputError
from llava_s2.formats.load import load_pretrained
from llava_s2.model.inference import Message, assistant_message, encode_prompts, token_arguments
from llava_s2.model.labels import IGNORE_INDEX, encode_messages
from llava_s2.model.processor import set_template
from llava_s2.s2.packed_linear import pack_frozen

_PLACEHOLDER = re.compile(r"<image(?: \d+)?>")
_MAX_NEW_TOKENS = 1024  # where a task sets no bound, as lmms-eval's own LLaVA has it


class LlavaS2(lmms):
    """LLaVA-S² for lmms-eval's tasks of images.

    Args:
        pretrained, base, vision_tower, dtype: as ``load_pretrained`` takes them.
        template: conversation template in place of the checkpoint's own.
        batch_size: prompts generated at once.
        device: such as ``cuda:0`` or ``cpu``; by default this process's accelerator.
        max_batch_size: taken and not used; lmms-eval passes it.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        base: str | None = None,
        vision_tower: str | None = None,
        dtype: str = "auto",
        template: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        from accelerate import Accelerator

        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(device) if device and self._world_size == 1 else self.accelerator.device
        if dtype == "auto" and self.device.type == "cpu":
            dtype = "float32"  # half precision is slower there
        self.model, self.processor = load_pretrained(
            pretrained, base, vision_tower=vision_tower, dtype=dtype, device_map={"": str(self.device)}
        )
        pack_frozen(self.model.requires_grad_(False))
        if template is not None:
            set_template(self.processor, template)
        try:
            self.batch_size = int(batch_size)
        except ValueError:
            raise InputError(f"--batch_size {batch_size}: llava_s2 takes a whole number") from None

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer a request, in order; requests with equal generation arguments are batched."""
        answers: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(place)
        with tqdm(total=len(requests), disable=self._rank != 0, desc="llava_s2", unit="answer") as bar:
            for places in groups.values():
                left = iter(places)
                while batch := list(islice(left, self.batch_size)):
                    for place, text in zip(batch, self._generate([requests[i] for i in batch]), strict=True):
                        answers[place] = text
                        self.cache_hook.add_partial("generate_until", requests[place].args[:2], text)
                    bar.update(len(batch))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """The mean cross-entropy of each continuation as the reply, and whether greedy decoding would give it.

        lmms-eval takes the smallest as the choice, so this is V*'s way of choosing, up to and with the end of the turn.
        The pairs are wrapped because 0.7.3 makes one text of a bare tuple, and then cannot take it apart.
        """
        results = []
        for request in tqdm(requests, disable=self._rank != 0, desc="llava_s2", unit="reply"):
            context, continuation, *place = request.args
            if not isinstance(continuation, str):
                continuation = continuation(self._doc(*place))
            images = self._images(*place)
            messages = [_user(context, len(images)), assistant_message(continuation.strip())]
            results.append(GenerationResult(text=self._loss(messages, images)))
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there: LLaVA-1.5 is not made for tasks of several rounds."""
        raise InputError("llava_s2 runs tasks of one round; this task has several")

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Instance]) -> list[str]:
        images = [self._images(*request.args[2:]) for request in requests]
        conversations = [[_user(request.args[0], len(shown))] for request, shown in zip(requests, images, strict=True)]
        inputs = encode_prompts(self.processor, conversations, [image for shown in images for image in shown])
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        arguments = dict(requests[0].args[1])
        until = arguments.get("until") or []
        sampled = bool(arguments.get("do_sample", (arguments.get("temperature") or 0) > 0))
        output = self.model.generate(  # type: ignore[misc]
            **inputs,
            do_sample=sampled,
            temperature=arguments.get("temperature") if sampled else None,
            top_p=arguments.get("top_p") if sampled else None,
            top_k=arguments.get("top_k") if sampled else None,
            num_beams=arguments.get("num_beams") or 1,
            max_new_tokens=arguments.get("max_new_tokens") or _MAX_NEW_TOKENS,
            **token_arguments(self.model, self.processor),
        )
        texts = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [_cut(text, [until] if isinstance(until, str) else until).strip() for text in texts]

    @torch.inference_mode()
    def _loss(self, messages: list[Message], images: Sequence[Image.Image]) -> tuple[float, bool]:
        encoded = encode_messages(messages, self.processor, str(self.processor.chat_template))
        pixels = {}
        if images:
            pixels = {"pixel_values": self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]}
            pixels["pixel_values"] = pixels["pixel_values"].to(self.model.device, self.model.dtype)
        ids = torch.tensor([encoded["input_ids"]], device=self.model.device)
        targets = torch.tensor(encoded["labels"], device=self.model.device)[1:]
        logits = self.model(input_ids=ids, use_cache=False, **pixels).logits[0, :-1].float()
        counted = targets != IGNORE_INDEX
        logits = logits[counted]
        logits[:, self.processor.image_token_id] = -torch.inf  # no reply holds an image
        loss = cross_entropy(logits, targets[counted])
        return loss.item(), bool((logits.argmax(dim=-1) == targets[counted]).all())

    def _doc(self, doc_to_visual: Any, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _images(self, doc_to_visual: Any, doc_id: int, task: str, split: str) -> list[Image.Image]:
        shown = doc_to_visual(self._doc(doc_to_visual, doc_id, task, split)) or []
        if strange := [type(visual).__name__ for visual in shown if not isinstance(visual, Image.Image)]:
            raise InputError(f"task {task}, document {doc_id}: shows a {strange[0]}; llava_s2 sees images only")
        return [image.convert("RGB") for image in shown]


def _user(text: str, images: int) -> Message:
    """A user's turn; its images stand where the text has a placeholder for each, else before it."""
    parts = _PLACEHOLDER.split(text)
    image: dict[str, Any] = {"type": "image"}
    if images and len(parts) == images + 1 and "<image>" in text:
        content = [part for words in parts for part in (image, {"type": "text", "text": words})][1:]
        content = [part for part in content if part is image or part["text"]]
    else:
        content = [image] * images + [{"type": "text", "text": text.replace("<image>", "").lstrip()}]
    return {"role": "user", "content": content}


def _cut(text: str, ends: Sequence[str]) -> str:
    for end in ends:
        text = text.split(end)[0] if end else text
    return text
