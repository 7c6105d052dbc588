"""A language model that grades: any OpenAI-compatible endpoint, with answers kept on disk, retries and an account.

The key comes from an environment variable and goes nowhere but into the request's header.
"""

import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from llava_s2.errors import InputError
from llava_s2.eval.openai_servers import OUT_OF_TOKENS, Dialect, broken_off, reply_text, without_reasoning

_ATTEMPTS = 8
_LONGEST_WAIT = 600.0  # seconds that a server may ask for before we give up
_LONGEST_BACKOFF = 60.0
_TRANSIENT = (408, 409, 425, 429)  # and every 5xx


@dataclass(frozen=True)
class JudgeSource:
    """Where the judge is.

    Attributes:
        url: base of the API, such as ``https://HOST/v1``.
        model: name of the model there.
        key_variable: environment variable that holds the key; none is sent where it is not set.
        runs: times that each answer is graded, by default as often as the benchmark's authors did.
        concurrency: requests at once.
        timeout: seconds that an answer may take before it is asked again.
        prices: US dollars a million prompt and completion tokens, for the account.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    runs: int | None = None
    concurrency: int = 8
    timeout: float = 60.0
    prices: tuple[float, float] | None = None


class Stopped(Exception):
    """The request was given up because another failed for good."""


class Judge:
    """Asks the model, safely from several threads; every answer is kept, so that none is paid for twice.

    Args:
        source: where it is.
        cache: a file of JSON lines that grows by whole lines; one that was cut off in its last line is fine.

    Raises:
        InputError: the URL is none, httpx is not installed, or the cache is something else.
    """

    def __init__(self, source: JudgeSource, cache: Path) -> None:
        try:
            import httpx
        except ImportError:
            raise InputError('a judge takes httpx: pip install "llava-s2[eval]"') from None
        if not source.url.startswith(("http://", "https://")):
            raise InputError(f"--judge-url {source.url}: is no http:// or https:// address")
        self.source = source
        base = source.url.rstrip("/")
        self._address = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self._key = os.environ.get(source.key_variable, "").strip()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(timeout=source.timeout, headers=headers, follow_redirects=False)
        self._failures: tuple[type[Exception], ...] = (httpx.TransportError,)
        self._cache = cache
        self._answers = _read_cache(cache)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._counts: Counter[str] = Counter()
        self._models: set[str] = set()
        self._dialect = Dialect()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._client.close()

    @property
    def name(self) -> str:
        """The model and where it is asked: what a verdict depends on."""
        return f"{self.source.model} at {self.source.url.rstrip('/')}"

    def ask(self, prompt: str, *, temperature: float, max_tokens: int, run: int = 0, system: str = "") -> str:
        """The model's reply to one user's message.

        Args:
            prompt: the message.
            temperature: of sampling.
            max_tokens: bound on the reply.
            run: tells apart questions that are alike but asked anew.
            system: a system message before it.

        Raises:
            InputError: the server refuses, or still fails after several attempts.
            Stopped: ``stop`` was called.
        """
        request = {
            "model": self.source.model,
            "messages": [
                *([{"role": "system", "content": system}] if system else []),
                {"role": "user", "content": prompt},
            ],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        key = hashlib.sha256(json.dumps([self._address, request, run]).encode()).hexdigest()
        with self._lock:
            answer = self._answers.get(key)
        if answer is None:
            answer = {"key": key, **self._post(request)}
            with self._lock:
                self._answers[key] = answer
                with self._cache.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            kind = "requests"
        else:
            kind = "cached"
        with self._lock:
            self._models.add(answer["model"])
            self._counts.update({k: answer[k] for k in ("prompt_tokens", "completion_tokens")})
            self._counts["own_temperature"] += answer.get("own_temperature", False)
            self._counts[kind] += 1
        return answer["text"]

    def stop(self) -> None:
        """Makes requests that wait give up."""
        self._stop.set()

    def account(self) -> dict[str, Any]:
        """What the answers so far took.

        Returns:
            ``requests`` sent and answered, ``cached`` ones that were not sent, ``retries``; ``prompt_tokens`` and
            ``completion_tokens`` of both, as the server counts them; ``dollars`` for these if prices are known;
            ``models``, the names under which the server answered; ``own_temperature``, how many were drawn at the
            server's own since it refuses the official one, if any.
        """
        counts = {k: self._counts[k] for k in ("requests", "cached", "retries", "prompt_tokens", "completion_tokens")}
        dollars = {}
        if self.source.prices:
            tokens = (counts["prompt_tokens"], counts["completion_tokens"])
            spent = sum(count * price for count, price in zip(tokens, self.source.prices, strict=True)) / 1e6
            dollars = {"dollars": round(spent, 6)}
        own = {"own_temperature": drawn} if (drawn := self._counts["own_temperature"]) else {}
        return {**counts, **dollars, **own, "models": sorted(self._models)}

    def _post(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request until it is answered: ``text``, ``model``, two counts of tokens, perhaps ``own_temperature``."""
        fault = ""
        for attempt in range(_ATTEMPTS):
            if self._stop.is_set():
                raise Stopped
            wait = random.uniform(0.5, 1.0) * min(_LONGEST_BACKOFF, 2.0**attempt)
            sent = self._dialect.spell(request)
            try:
                response = self._client.post(self._address, json=sent)
            except self._failures as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    answer = _parse(response.content)
                    if answer is not None and answer.pop("all_reasoning"):
                        if self._dialect.give_room(sent):
                            continue
                        raise InputError(
                            f"judge {self._address}: all tokens went into its reasoning and none into a verdict; "
                            "name another --judge-model"
                        )
                    if answer is not None:
                        return answer if "temperature" in sent else {**answer, "own_temperature": True}
                    fault = f"an answer that is no chat completion: {self._plain(response.text)}"
                else:
                    fault = f"HTTP {response.status_code}: {self._plain(response.text)}"
                    if response.status_code in (400, 422) and self._dialect.learn(sent, response.text):
                        continue
                    if response.status_code == 400 and OUT_OF_TOKENS in response.text and self._dialect.give_room(sent):
                        continue
                    transient = response.status_code in _TRANSIENT or response.status_code >= 500
                    if not transient or "insufficient_quota" in response.text:
                        raise InputError(f"judge {self._address}: {fault}{self._hint(response.status_code)}")
                    asked = _retry_after(response.headers)
                    if asked is not None and asked > _LONGEST_WAIT:
                        raise InputError(f"judge {self._address}: {fault}; it asks to wait {asked:.0f} s, so try later")
                    wait = wait if asked is None else asked
            if attempt < _ATTEMPTS - 1:
                with self._lock:
                    self._counts["retries"] += 1
                self._stop.wait(wait)
        raise InputError(f"judge {self._address}: no answer in {_ATTEMPTS} attempts, at last {fault}")

    def _plain(self, text: str) -> str:
        """A server's words in one short line, without the key."""
        text = " ".join(text.split())[:200]
        return text.replace(self._key, "…") if self._key else text

    def _hint(self, status: int) -> str:
        variable = self.source.key_variable
        if status in (401, 403):
            return f"; the key is taken from ${variable}, which is {'set' if self._key else 'not set'}"
        lost = status in (301, 302, 303, 307, 308, 404, 405)
        return "; is it the base of an OpenAI-compatible API, as https://HOST/v1?" if lost else ""


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        if broken_off(choice):
            return None
        text = without_reasoning(reply_text(choice["message"]))
        usage = completion.get("usage") or {}
        counts = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    reasoned = not text and choice.get("finish_reason") == "length"
    if choice["message"].get("content") is None and not text and not reasoned:
        return None
    return {"text": text, "model": str(completion.get("model") or ""), **counts, "all_reasoning": reasoned}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait; the header holds a number or a date."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    """The answers kept so far; a last line that was cut off is removed from the file."""
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        os.truncate(path, whole)
    answers = {}
    for number, line in enumerate(raw[:whole].splitlines(), start=1):
        try:
            answer = json.loads(line)
            if not isinstance(answer["text"], str):
                raise TypeError
            answers[answer["key"]] = {"model": "", "prompt_tokens": 0, "completion_tokens": 0, **answer}
        except (ValueError, LookupError, TypeError):
            raise InputError(f"{path}, line {number}: is no answer of a judge; remove the file") from None
    return answers
