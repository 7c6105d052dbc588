"""Tokenizers whose ids around ``<image>`` are those LLaVA was trained on.

LLaVA tokenizes the text before and after an image apart, with the SentencePiece tokenizer of Llama, so every stretch of
text that follows an image begins with SentencePiece's dummy space. transformers 5 rebuilds such a tokenizer with its
merges in the order of the ids, which differs from SentencePiece where spaces repeat; here the merges keep the order of
the scores (or of ``tokenizer.json``), and the dummy space is put where the original calls put it.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from llava_s2.errors import InputError
from llava_s2.model.templates import IMAGE_TOKEN
from llava_s2.weight_files import find_file, first_line, read_json

_SENTENCEPIECE_CLASSES = {"LlamaTokenizer", "LlamaTokenizerFast"}
_SPACE_BEFORE_EVERY_STRETCH = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def load_tokenizer(
    name: str | Path, *, gguf_file: str | None = None, extra_tokens: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of an LLM or LLaVA checkpoint and makes sure that it has the ``<image>`` token.

    Args:
        name: a folder or a hub id.
        gguf_file: the GGUF file in it, when the LLM is one.
        extra_tokens: added before ``<image>`` where missing (``mm_use_im_start_end`` of LLaVA's config).

    Returns:
        A fast tokenizer; ids that the checkpoint knows are unchanged and new tokens come after them.

    Raises:
        InputError: there is no tokenizer in the folder, or it has no end-of-sequence token.
    """
    settings = {} if gguf_file else _read_json(name, "tokenizer_config.json")
    is_llama = not gguf_file and settings.get("tokenizer_class", "LlamaTokenizer") in _SENTENCEPIECE_CLASSES
    model_file = find_file(name, "tokenizer.model") if is_llama else None
    json_file = find_file(name, "tokenizer.json") if is_llama else None
    tokenizer: Any
    if model_file:
        tokenizer = _from_sentencepiece(name, model_file, settings)
    elif json_file and _is_sentencepiece(json_file):
        tokenizer = _wrap(name, _with_merges_by_score(json_file), settings)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, gguf_file=gguf_file)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{name}: no tokenizer could be read there ({first_line(error)})") from error
    if isinstance(tokenizer.chat_template, dict):  # several, of which others are for tools and documents
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    check_eos(tokenizer, name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    _append_nothing(tokenizer)
    known = tokenizer.get_vocab()
    new = [token for token in extra_tokens if token not in known]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in new], special_tokens=True)
    if IMAGE_TOKEN not in known:
        # Where the dummy space is the text's first alone, another goes behind an image: for that the image must still
        # be in the text when it is normalized.
        normalized = _space_behind_images(tokenizer.backend_tokenizer)
        image = AddedToken(IMAGE_TOKEN, normalized=normalized, special=True)
        tokenizer.add_tokens([image], special_tokens=True)
    pad_left(tokenizer)
    return tokenizer


def check_eos(tokenizer: Any, name: str | Path) -> None:
    """Raises InputError where a tokenizer has no end-of-sequence token: ``name`` is its folder or hub id."""
    if tokenizer.eos_token is None:
        raise InputError(
            f"{name}: the tokenizer has no end-of-sequence token, so replies could not end; see tokenizer_config.json"
        )


def pad_left(tokenizer: Any) -> None:
    """Has a tokenizer, also once it is saved and loaded, pad on the left, where ``generate`` needs it."""
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"


def _from_sentencepiece(name: str | Path, model_file: str, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    vocab, merges, special = _read_sentencepiece(model_file, Path(model_file).stat().st_mtime_ns)
    backend = Tokenizer(BPE(vocab, merges, unk_token=special[0], fuse_unk=True, byte_fallback=True))
    if settings.get("legacy", True):  # every stretch of text between special tokens gets the dummy space
        backend.normalizer = _SPACE_BEFORE_EVERY_STRETCH
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    _add_listed(backend, name, settings, vocab)
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=False))
    return _wrap(name, backend, names | settings)


@lru_cache(maxsize=2)  # a training reads its tokenizer twice: for the lengths of its records, and with the model
def _read_sentencepiece(file: str, changed: int) -> tuple[dict[str, int], list[tuple[str, str]], list[str]]:
    """Ids, merges by score, and the unknown, first and last token of a SentencePiece model changed at that time."""
    pieces = SentencePieceProcessor(model_file=file)
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    special = [pieces.id_to_piece(i) for i in (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) if i >= 0]
    return vocab, generate_merges(vocab, scores, skip_tokens=special), special


def _add_listed(backend: Tokenizer, name: str | Path, settings: dict[str, Any], vocab: dict[str, int]) -> None:
    """Adds the tokens that stand in ``tokenizer_config.json`` or ``added_tokens.json``, as these say, by their ids."""
    named = {_text(settings[key]) for key in _SPECIAL if settings.get(key)}
    named |= {_text(token) for token in settings.get("additional_special_tokens") or []}
    # Without more about it, a token is what transformers takes it for: ordinary, unless it is named as special.
    listed = {
        int(i): AddedToken(token, normalized=token not in named, special=token in named)
        for token, i in _read_json(name, "added_tokens.json").items()
    }
    for i, entry in settings.get("added_tokens_decoder", {}).items():
        flags = {key: entry.get(key, False) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        listed[int(i)] = AddedToken(entry["content"], **flags)
    for _, token in sorted(listed.items()):
        if token.content not in vocab:
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])


_SPECIAL = ("unk_token", "bos_token", "eos_token", "pad_token")


def _wrap(name: str | Path, backend: Tokenizer, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer of transformers that leaves the backend as it is: its Llama class would rebuild it."""
    template_file = find_file(name, "chat_template.jinja")
    template = Path(template_file).read_text("utf-8") if template_file else settings.get("chat_template")
    if isinstance(template, list):
        template = {each["name"]: each["template"] for each in template}
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    names = {key: _text(settings[key]) for key in _SPECIAL if settings.get(key)}
    ids = backend.get_vocab()
    bos = names.get("bos_token")
    if settings.get("add_bos_token", True) and bos in ids:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{key: known.get(token, token) for key, token in names.items()},
        additional_special_tokens=list(map(_text, settings.get("additional_special_tokens") or [])),
        chat_template=template,
        model_max_length=settings.get("model_max_length") or int(1e30),
        clean_up_tokenization_spaces=False,
    )


def _is_sentencepiece(json_file: str) -> bool:
    """Whether a ``tokenizer.json`` is Llama's SentencePiece model, whose text begins with a dummy space."""
    model = json.loads(Path(json_file).read_text("utf-8"))["model"]
    return model.get("type") == "BPE" and bool(model.get("byte_fallback")) and "▁" in model.get("vocab", {})


def _with_merges_by_score(json_file: str) -> Tokenizer:
    """A ``tokenizer.json`` with its merges as SentencePiece has them, where transformers 5 put them in the ids' order,
    and its dummy space before text that begins with a space too, where Metaspace puts none.

    Llama's scores fall with the ids, but for runs of spaces, which are merged last.
    """
    state = json.loads(Path(json_file).read_text("utf-8"))
    vocab = state["model"]["vocab"]
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in state["model"]["merges"]]
    ids = [vocab[first + second] for first, second in merges]
    # Rebuilt from pieces, a piece has all the ways to make it; of a model that was trained so, it has one.
    if ids == sorted(ids) and len(set(ids)) < len(ids):
        merges.sort(key=lambda pair: (set("".join(pair)) == {"▁"}, vocab["".join(pair)], -len(pair[0]), -len(pair[1])))
        runs = [pair for pair in merges if set("".join(pair)) == {"▁"}]
        runs.sort(key=lambda pair: (-len(pair[0]), -len(pair[1])))  # they have one score
        state["model"]["merges"] = [*merges[: len(merges) - len(runs)], *runs]
    backend = Tokenizer.from_str(json.dumps(state))
    splits = state["pre_tokenizer"] or {}
    if splits.get("type") == "Metaspace" and splits["prepend_scheme"] == "always" and state["normalizer"] is None:
        backend.normalizer, backend.pre_tokenizer = _SPACE_BEFORE_EVERY_STRETCH, None
    return backend


def _space_behind_images(backend: Tokenizer) -> bool:
    """Has the text behind an image begin as a text does, where the dummy space is the whole text's alone.

    Returns:
        Whether it is, so that ``<image>`` must be found after normalization, which puts that space.
    """
    # Its state alone: a whole tokenizer's is its vocabulary.
    pre_tokenizer = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else {}
    if pre_tokenizer.get("type") != "Metaspace" or pre_tokenizer.get("prepend_scheme") != "first":
        return False
    behind = Regex(rf"(?<={IMAGE_TOKEN})(?!{IMAGE_TOKEN})(?=.|\n)")
    steps = [normalizers.Replace(" ", "▁"), normalizers.Replace(behind, "▁")]
    backend.normalizer = normalizers.Sequence([backend.normalizer, *steps] if backend.normalizer else steps)
    # Two steps: Metaspace puts no space before one that is there, and SentencePiece does.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
            pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False),
        ]
    )
    return True


def _append_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    """Keeps a tokenizer from writing its end-of-sequence token behind every text: a prompt would end with it."""
    backend = tokenizer.backend_tokenizer
    if backend.encode("a").ids[-1:] != [tokenizer.eos_token_id]:
        return
    state = json.loads(backend.to_str())
    processor = state["post_processor"]
    for part in processor["processors"] if processor["type"] == "Sequence" else [processor]:
        if part["type"] != "TemplateProcessing":
            continue
        for kind in ("single", "pair"):
            part[kind] = [
                piece for piece in part[kind] if piece.get("SpecialToken", {}).get("id") != tokenizer.eos_token
            ]
    backend.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor
    tokenizer.init_kwargs.pop("add_eos_token", None)
    if backend.encode("a").ids[-1:] == [tokenizer.eos_token_id]:  # one made for BERT's kind
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer ends every text with {tokenizer.eos_token} (post_processor in "
            "tokenizer.json), so a prompt would end before its answer; have it write the beginning alone"
        )


def _text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _read_json(name: str | Path, file: str) -> dict[str, Any]:
    found = find_file(name, file)
    return read_json(found) if found else {}
