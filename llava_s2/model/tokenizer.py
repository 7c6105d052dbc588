"""Tokenizers whose ids around ``<image>`` are those LLaVA was trained on.

LLaVA tokenizes the text before and after an image apart, with the SentencePiece tokenizer of Llama, so every stretch of
text that follows an image begins with SentencePiece's dummy space. transformers 5 rebuilds such a tokenizer with its
merges in the order of the ids, which differs from SentencePiece where spaces repeat; here the merges keep the order of
the scores, and the dummy space is put where the original calls put it.
"""

from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from llava_s2.errors import InputError
from llava_s2.model.templates import IMAGE_TOKEN
from llava_s2.weight_files import find_file, first_line, read_json

_SENTENCEPIECE_CLASSES = {"LlamaTokenizer", "LlamaTokenizerFast"}


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
    model_file = None if gguf_file else find_file(name, "tokenizer.model")
    tokenizer: Any
    if model_file and settings.get("tokenizer_class", "LlamaTokenizer") in _SENTENCEPIECE_CLASSES:
        tokenizer = _from_sentencepiece(model_file, settings, _read_json(name, "added_tokens.json"))
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, gguf_file=gguf_file)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{name}: no tokenizer could be read there ({first_line(error)})") from error
    if tokenizer.eos_token is None:
        raise InputError(f"{name}: the tokenizer has no end-of-sequence token, so replies could not end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    known = tokenizer.get_vocab()
    new = [token for token in (*extra_tokens, IMAGE_TOKEN) if token not in known]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in new], special_tokens=True)
    pad_left(tokenizer)
    return tokenizer


def pad_left(tokenizer: Any) -> None:
    """Has a tokenizer, also once it is saved and loaded, pad on the left, where ``generate`` needs it."""
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"


def _from_sentencepiece(model_file: str, settings: dict[str, Any], added: dict[str, int]) -> PreTrainedTokenizerFast:
    pieces = SentencePieceProcessor(model_file=model_file)
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    special = [pieces.id_to_piece(i) for i in (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) if i >= 0]
    merges = generate_merges(vocab, scores, skip_tokens=special)
    backend = Tokenizer(BPE(vocab, merges, unk_token=special[0], fuse_unk=True, byte_fallback=True))
    space = normalizers.Replace(" ", "▁")
    legacy = settings.get("legacy", True)
    if legacy:  # every stretch of text between special tokens gets the dummy space
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    else:
        # Only the text's start and what follows an image get it. <image> is split off before normalization, the other
        # special tokens after it, so they stand inside the stretch that the dummy space was put in front of.
        first = Regex(r"\A(?!" + "|".join(special) + ")(?=.|\n)")
        backend.normalizer = normalizers.Sequence([normalizers.Replace(first, "▁"), space])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = {
        key: _text(settings[key]) for key in ("unk_token", "bos_token", "eos_token", "pad_token") if settings.get(key)
    }
    names.setdefault("unk_token", special[0])
    names.setdefault("bos_token", special[1])
    names.setdefault("eos_token", special[2])
    backend.add_special_tokens([AddedToken(token, normalized=not legacy, special=True) for token in special])
    listed = {entry["content"]: int(i) for i, entry in settings.get("added_tokens_decoder", {}).items()} | added
    for token, _ in sorted(listed.items(), key=lambda item: item[1]):
        if token not in vocab:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{key: AddedToken(token, normalized=not legacy, special=True) for key, token in names.items()},
        add_bos_token=settings.get("add_bos_token", True),
        add_eos_token=False,
        model_max_length=settings.get("model_max_length") or int(1e30),
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


def _text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _read_json(name: str | Path, file: str) -> dict[str, Any]:
    found = find_file(name, file)
    return read_json(found) if found else {}
