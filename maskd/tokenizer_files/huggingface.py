"""Hugging Face tokenizer.json: token bytes as the file's own decoder would write them.

A SentencePiece-style tokenizer may drop one space at the start of the whole text. Masks are made for text in the middle
of a sequence, so a token always keeps its space.
Owns: byte-level BPE (GPT-2's byte alphabet) and SentencePiece style (``▁`` for space, ``<0xHH>`` for bytes). Other
kinds are refused.
Knows nothing about: the files beside tokenizer.json, encoding, merges.
Sources: huggingface/tokenizers, ``decoders/*.rs`` and ``pre_tokenizers/byte_level.rs``; openai/gpt-2,
``bytes_to_unicode``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from maskd.errors import VocabularyError
from maskd.tokenizer_files.reading import Draft, expect, expect_id, invalid, utf8

__all__ = ["read_huggingface"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NEIGHBOURS = "its tokens read differently depending on their neighbours, so that they have no bytes of their own"


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte of each character in GPT-2's alphabet.

    Printable Latin-1 stands for itself; the other 68 bytes are U+0100 and the characters after it.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def read_huggingface(path: Path, data: Mapping[str, Any]) -> Draft:
    """Returns the draft of a tokenizer.json.

    Raises:
        VocabularyError: malformed, or of a kind whose tokens have no bytes of their own (WordPiece, WordLevel, suffix
            BPE).
    """
    model = expect(path, "model", data.get("model"), dict)
    kind = _model_kind(path, model)
    if kind not in ("BPE", "Unigram"):
        raise _unsupported(path, f"the model is {kind}: {_NEIGHBOURS}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _unsupported(path, f"model.{key} is {model[key]!r}: {_NEIGHBOURS}")

    decode, is_byte_level = _decoder(path, data, model)
    # Added tokens are matched in the plain text: they are not spelled in the byte alphabet.
    draft = Draft(decode_added=None if is_byte_level else decode)
    for text, token_id in _model_tokens(path, model, kind):
        if token_id in draft.tokens:
            raise invalid(path, f"model.vocab gives id {token_id} to two tokens; write the tokenizer file again")
        draft.tokens[token_id] = decode(text)
        draft.names[text] = token_id
    _mark_unknown(path, draft, model, kind)

    for place, item in enumerate(expect(path, "added_tokens", data.get("added_tokens") or [], list)):
        entry = expect(path, f"added_tokens[{place}]", item, dict)
        token_id = expect_id(path, f"added_tokens[{place}].id", entry.get("id"))
        text = expect(path, f"added_tokens[{place}].content", entry.get("content"), str)
        draft.add(path, token_id, text, special=entry.get("special") is True)
    return draft


def _unsupported(path: Path, problem: str) -> VocabularyError:
    return invalid(
        path, f"unsupported tokenizer: {problem}; use a model with byte-level BPE or SentencePiece-style tokens"
    )


def _model_kind(path: Path, model: Mapping[str, Any]) -> str:
    """Returns the model's type. Files from before 2021, like GPT-2's, have none and are told apart by their fields."""
    if model.get("type") is not None:
        return expect(path, "model.type", model["type"], str)
    if "merges" in model:
        return "BPE"
    if "max_input_chars_per_word" in model:
        return "WordPiece"
    return "Unigram" if isinstance(model.get("vocab"), list) else "WordLevel"


def _model_tokens(path: Path, model: Mapping[str, Any], kind: str) -> Iterator[tuple[str, int]]:
    """Yields the trained tokens with their ids: a mapping for BPE, a list of [token, score] for Unigram."""
    if kind == "BPE":
        for text, token_id in expect(path, "model.vocab", model.get("vocab"), dict).items():
            yield text, expect_id(path, f"the id of {text[:40]!a}", token_id)
        return
    for token_id, item in enumerate(expect(path, "model.vocab", model.get("vocab"), list)):
        pair = expect(path, f"model.vocab[{token_id}]", item, list)
        yield expect(path, f"model.vocab[{token_id}][0]", pair[0] if pair else None, str), token_id


def _mark_unknown(path: Path, draft: Draft, model: Mapping[str, Any], kind: str) -> None:
    """Makes the unknown token special: it stands for text that the model cannot spell, never for its own name."""
    if kind == "BPE" and model.get("unk_token"):
        draft.mark_special(path, expect(path, "model.unk_token", model["unk_token"], str))
    if kind == "Unigram" and model.get("unk_id") is not None:
        unknown = expect_id(path, "model.unk_id", model["unk_id"])
        draft.mark_special(path, next((text for text, token_id in draft.names.items() if token_id == unknown), ""))


def _components(path: Path, section: object) -> Iterator[dict[str, Any]]:
    """Yields the parts of a decoder, normalizer or pre_tokenizer, nested sequences flattened."""
    waiting = [section]
    while waiting:
        item = waiting.pop()
        if item is None:
            continue
        part = expect(path, "a part of the decoder, normalizer or pre_tokenizer", item, dict)
        if part.get("type") == "Sequence":
            inner = next((part[key] for key in ("decoders", "normalizers", "pretokenizers") if key in part), None)
            waiting.extend(reversed(expect(path, "the list of a Sequence", inner, list)))
        else:
            yield part


def _decoder(path: Path, data: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[Callable[[str], bytes], bool]:
    """Returns what maps a trained token to its bytes, and whether it is byte-level."""
    parts = list(_components(path, data.get("decoder")))
    if not parts:
        parts = _inferred_decoder(path, data, model)
    replacements: list[tuple[str, str]] = []
    byte_fallback = is_byte_level = is_fused = False
    for part in parts:
        kind = part.get("type")
        if kind == "ByteLevel":
            is_byte_level = True
        elif kind == "ByteFallback":
            byte_fallback = True
        elif kind == "Fuse":
            is_fused = True
        elif kind == "Metaspace":
            replacements.append((expect(path, "decoder.replacement", part.get("replacement", "▁"), str), " "))
        elif kind == "Replace":
            pattern, content = _replacement(path, part)
            if is_fused and len(pattern) > 1:
                raise _unsupported(path, f"the decoder replaces {pattern!r} after joining the tokens: {_NEIGHBOURS}")
            replacements.append((pattern, content))
        elif kind == "Strip" and is_fused:
            pass  # at the start of the text only
        else:
            raise _unsupported(path, f"decoder {kind!r}: {_NEIGHBOURS}")

    def decode(text: str) -> bytes:
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes.fromhex(match[1])
        for old, new in replacements:
            text = text.replace(old, new)
        # Tokens that are not in the byte alphabet as a whole stand for their text, as in the library.
        if is_byte_level and all(char in _BYTE_OF for char in text):
            return bytes(_BYTE_OF[char] for char in text)
        return utf8(path, text)

    return decode, is_byte_level


def _replacement(path: Path, part: Mapping[str, Any]) -> tuple[str, str]:
    pattern = expect(path, "the pattern of a Replace", part.get("pattern"), dict)
    if not isinstance(pattern.get("String"), str) or not pattern["String"]:
        raise _unsupported(path, "a Replace whose pattern is a regular expression or empty is not read")
    return pattern["String"], expect(path, "the content of a Replace", part.get("content"), str)


def _inferred_decoder(path: Path, data: Mapping[str, Any], model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the decoder that inverts the normalizer and pre_tokenizer, for files without one."""
    found: list[dict[str, Any]] = []
    for part in (*_components(path, data.get("normalizer")), *_components(path, data.get("pre_tokenizer"))):
        if part.get("type") in ("ByteLevel", "Metaspace"):
            found.append(part)
        elif part.get("type") == "Replace" and part.get("pattern") == {"String": " "} and part.get("content"):
            found.append({"type": "Replace", "pattern": {"String": part["content"]}, "content": " "})
    if not found:
        raise _unsupported(
            path, "there is no decoder, and neither normalizer nor pre_tokenizer say how tokens spell spaces"
        )
    return [{"type": "ByteFallback"}, *found] if model.get("byte_fallback") is True else found
