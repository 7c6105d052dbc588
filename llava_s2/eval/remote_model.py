"""A model behind an OpenAI-compatible server (vLLM, this package's own, another kit's) in place of a local one.

Likelihood needs a server that gives the log-probabilities of a prompt's tokens, as vLLM does (``prompt_logprobs``).
"""

import base64
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from llava_s2.data.image_decoding import Embedded
from llava_s2.errors import InputError, one_line
from llava_s2.eval.benchmark import Sample
from llava_s2.eval.local_model import content
from llava_s2.eval.openai_servers import OUT_OF_TOKENS, Dialect, broken_off, reply_text
from llava_s2.eval.report import FAILED, REFUSED

Item = TypeVar("Item")
Result = TypeVar("Result")
_RETRIES = 8
_SENT_AS_THEY_ARE = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png"}
_REFUSALS = (400, 413, 415, 422)
"""Of one request, as too large an image; others are the server's or the key's fault."""


class RemoteModel:
    """Asks a server, several questions at once.

    Args:
        url: base of the API, such as ``http://HOST/v1``.
        model: the model's name there.
        key_variable: environment variable that holds the key, if the server wants one.
        concurrency: requests at once.

    Raises:
        InputError: the package openai is not installed, or ``url`` is no address.
    """

    def __init__(self, url: str, model: str, key_variable: str = "OPENAI_API_KEY", concurrency: int = 16) -> None:
        try:
            from openai import OpenAI
        except ImportError:
            raise InputError('--model-url takes openai: pip install "llava-s2[eval]"') from None
        if not url.startswith(("http://", "https://")):
            raise InputError(f"--model-url {url}: is no http:// or https:// address")
        self._url = url.rstrip("/").removesuffix("/chat/completions")
        self._model = model
        self._concurrency = concurrency
        key = os.environ.get(key_variable, "").strip() or "none"
        self._dialect = Dialect()
        self._client = OpenAI(base_url=self._url, api_key=key, max_retries=_RETRIES, timeout=600)

    def fingerprint(self) -> dict[str, Any]:
        """The model's name; where it is served does not matter to its answers."""
        return {"model": self._model, "served": True}

    def about(self) -> dict[str, Any]:
        """What the server says of itself. Raises InputError if it does not answer or does not have the model."""
        import openai

        try:
            listed: Any = self._client.with_options(max_retries=1).models.list()  # a wrong address shows soon
        except openai.NotFoundError:  # some servers have no list of their models
            listed = None
        except openai.OpenAIError as error:
            raise self._fault(error) from None
        known = [model.id for model in getattr(listed, "data", None) or ()]
        if known and not any(self._model in (name, name.rpartition("/")[2]) for name in known):
            raise InputError(f"{self._url}: has no model {self._model!r}; it has {', '.join(known[:20])}")
        return {"template": "the server's", "image_mode": "the server's", "dtype": "the server's"}

    def automatic_size(self, samples: Sequence[Sample], answer_tokens: int) -> int:
        """Questions at once: as many as requests."""
        return self._concurrency

    def prepare(self, image: Image.Image, file: Path | Embedded | None = None) -> str:
        """A data URL of the image's file if it is a JPEG or PNG, else of a PNG that is made of the image."""
        data = file.read() if isinstance(file, Embedded) else file.read_bytes() if file else b""
        for start, kind in _SENT_AS_THEY_ARE.items():
            if data.startswith(start):
                return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        buffer = BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def generate(self, batch: Sequence[tuple[Sample, Any]], max_new_tokens: int) -> list[dict[str, Any]]:
        """The greedy answer to each question, or one at the server's own temperature where it refuses 0.

        Returns:
            ``text``; and where it is so, ``cut``: it ended at ``max_new_tokens``; ``withheld``: by the server;
            ``own_temperature``; ``reasoning``; ``server_refused``: why the question has no answer; ``server_failed``:
            why it, and what was not asked yet, has none.
        """

        def ask(pair: tuple[Sample, Any]) -> dict[str, Any]:
            try:
                sent, completion = self._chat([_user(*pair)], max_new_tokens)
            except _Refused as error:
                return {"text": "", "cut": True} if OUT_OF_TOKENS in str(error) else {"text": "", REFUSED: str(error)}
            choice = completion.choices[0]
            message = choice.message.to_dict(warnings=False)
            flags = {
                "cut": choice.finish_reason == "length",
                "withheld": choice.finish_reason == "content_filter" or bool(message.get("refusal")),
                "reasoning": bool(message.get("reasoning_content") or message.get("reasoning")),
                "own_temperature": "temperature" not in sent,
            }
            return {"text": reply_text(message).strip(), **{name: True for name, so in flags.items() if so}}

        answers = self._each(ask, batch)
        return [{"text": "", FAILED: str(a)} if isinstance(a, InputError) else a for a in answers]

    def rank(self, batch: Sequence[tuple[Sample, Any]]) -> list[dict[str, Any]]:
        """The mean cross-entropy of each option as the reply, from the server's log-probabilities of the prompt.

        Returns:
            ``losses``; or ``server_refused`` or ``server_failed``, as ``generate`` has them.
        """

        def loss(item: tuple[tuple[Sample, Any], str]) -> "float | _Refused":
            pair, option = item
            asked = _user(*pair)
            try:
                replied = self._prompt([asked, {"role": "assistant", "content": option}], opens=False)
                start = len(self._prompt([asked], opens=True))
            except _Refused as error:
                return error
            counted = _reply(replied[start:], option)
            if not counted or any(logprob is None for _, logprob in counted):
                raise InputError(f"{self._url}: its log-probabilities do not cover the option {option!r}")
            return -sum(logprob for _, logprob in counted) / len(counted)

        losses = iter(self._each(loss, [(pair, option) for pair in batch for option in pair[0].options]))
        found: list[dict[str, Any]] = []
        for sample, _ in batch:
            own = [next(losses) for _ in sample.options]
            faults = [one for one in own if isinstance(one, InputError)]
            refusals = [one for one in faults if isinstance(one, _Refused)]
            if not faults:
                found.append({"losses": own})
            elif len(refusals) < len(faults):
                found.append({FAILED: next(str(one) for one in faults if one not in refusals)})
            else:
                found.append({REFUSED: str(refusals[0])})
        return found

    def _each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> "list[Result | InputError]":
        """What comes of each item, several at once; the error of those that fail and, after one has, of all others."""
        failed: list[InputError] = []

        def one(item: Item) -> "Result | InputError":
            if not failed:
                try:
                    return work(item)
                except InputError as error:
                    failed.append(error)
            return failed[0]

        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(one, items))

    def _prompt(self, messages: list[dict[str, Any]], *, opens: bool) -> list[tuple[str, Any]]:
        """Each token of a prompt with its log-probability, of the first none; ``opens``: up to where the assistant
        begins."""
        extra = {"prompt_logprobs": 0, "add_generation_prompt": opens, "continue_final_message": False}
        try:
            _, completion = self._chat(messages, 1, extra)
        except _Refused as error:
            if any(name in str(error) for name in extra):  # it would refuse every question
                raise InputError(f"{error}; likelihood takes prompt_logprobs, --scoring generate does not") from None
            raise
        told = (completion.model_extra or {}).get("prompt_logprobs")
        if not isinstance(told, list):
            raise InputError(f"{self._url}: gives no prompt_logprobs, which likelihood takes; use --scoring generate")
        tokens = [next(iter(entry.values())) if entry else {} for entry in told]
        return [(token.get("decoded_token") or "", token.get("logprob")) for token in tokens]

    def _chat(
        self, messages: list[dict[str, Any]], max_tokens: int, extra: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], Any]:
        """The request as the server took it, and its completion, which has a choice."""
        import openai

        request = {"model": self._model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        while True:
            sent = self._dialect.spell(request)
            try:
                completion: Any = self._client.chat.completions.create(**sent, extra_body=extra)
            except openai.APIStatusError as error:
                if error.status_code not in _REFUSALS:
                    raise self._fault(error) from None
                if not self._dialect.learn(sent, str(error)):
                    raise _Refused(self._fault(error)) from None
            except openai.OpenAIError as error:
                raise self._fault(error) from None
            else:
                choices = getattr(completion, "choices", None)
                if not choices or choices[0].message is None:
                    raise InputError(f"{self._url}: its reply is no chat completion: {one_line(completion)}")
                if why := broken_off(choices[0].to_dict(warnings=False)):
                    raise InputError(f"{self._url}: a reply was broken off ({one_line(why)}); start again to go on")
                return sent, completion

    def _fault(self, error: Exception) -> InputError:
        hint = "; is it the base of an OpenAI-compatible API, as http://HOST/v1?"
        return InputError(
            f"{self._url}: {one_line(error)}{hint if getattr(error, 'status_code', 0) in (404, 405) else ''}"
        )


class _Refused(InputError):
    """The server takes requests, but not this one."""


def _reply(tokens: list[tuple[str, Any]], option: str) -> list[tuple[str, Any]]:
    """The reply's tokens up to the one that ends its turn, as training counts them.

    A template may set a line's end behind that, which the reply's losses would be diluted by.
    """
    end = len(tokens)
    while end and tokens[end - 1][0].isspace():
        end -= 1
    ends_in_space = end and option.rstrip().endswith(tokens[end - 1][0].strip())  # no token ends turns but space
    return tokens[: end + 1] if ends_in_space else tokens[:end]


def _user(sample: Sample, images: Sequence[str]) -> dict[str, Any]:
    """The question as a message of the API; the images in their places, or before it."""
    left = iter(images)
    told = content(sample)
    if isinstance(told, str):
        told = [*({"type": "image"} for _ in images), {"type": "text", "text": told}]
    parts = [
        {"type": "image_url", "image_url": {"url": next(left)}} if part["type"] == "image" else part for part in told
    ]
    return {"role": "user", "content": parts}
