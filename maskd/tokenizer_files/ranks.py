"""Rank files: tekken (Mistral's JSON) and tiktoken (one ``base64 rank`` per line).

In both each token is base64 of its bytes, so there is no alphabet to decode.
Owns: both formats.
Knows nothing about: the files beside them, encoding, merges.
Sources: mistralai/mistral-common, ``tokens/tokenizers/tekken.py``; openai/tiktoken, ``load.py``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskd.tokenizer_files.reading import Draft, expect, expect_id, invalid

__all__ = ["read_tekken", "read_tiktoken"]

_TEKKEN_EOS = "</s>"
# The special tokens of tekken files up to v7, which do not list them: mistral-common's DEPRECATED_SPECIAL_TOKENS.
_TEKKEN_SPECIAL_NAMES = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_LAST_VERSION_WITHOUT_LIST = 7


def read_tekken(path: Path, data: Mapping[str, Any]) -> Draft:
    """Returns the draft of a tekken file: special tokens, then ranks, cut to ``config.default_vocab_size``.

    Raises:
        VocabularyError: malformed, or too few ranks for the vocabulary size.
    """
    config = expect(path, "config", data.get("config"), dict)
    vocab = expect(path, "vocab", data.get("vocab"), list)
    vocab_size = expect_id(path, "config.default_vocab_size", config.get("default_vocab_size"))
    special_count = expect_id(path, "config.default_num_special_tokens", config.get("default_num_special_tokens"))
    rank_count = vocab_size - special_count
    if not 0 < rank_count <= len(vocab):
        raise invalid(
            path, f"{vocab_size} tokens less {special_count} special ones need that many ranks; vocab has {len(vocab)}"
        )

    draft = Draft(vocab_size=vocab_size)
    names = _tekken_special_names(path, data, config, special_count)
    for token_id in range(special_count):
        draft.add(path, token_id, names.get(token_id, f"<SPECIAL_{token_id}>"), special=True)
    if _TEKKEN_EOS in draft.names:
        draft.stop_ids = (draft.names[_TEKKEN_EOS],)
    for place, item in enumerate(vocab[:rank_count]):
        entry = expect(path, f"vocab[{place}]", item, dict)
        rank = expect_id(path, f"vocab[{place}].rank", entry.get("rank"))
        if rank != place:
            raise invalid(path, f"vocab[{place}].rank is {rank}; ranks rise by one from 0, fetch the file again")
        draft.tokens[special_count + rank] = _unbase64(path, f"vocab[{place}].token_bytes", entry.get("token_bytes"))
    return draft


def _tekken_special_names(
    path: Path, data: Mapping[str, Any], config: Mapping[str, Any], special_count: int
) -> dict[int, str]:
    if data.get("special_tokens") is None:
        version = re.match(r"v(\d{1,4})", str(config.get("version")))
        if version is None or int(version[1]) > _LAST_VERSION_WITHOUT_LIST:
            raise invalid(
                path, f"version {str(config.get('version'))[:40]!r} needs a special_tokens list; fetch the file again"
            )
        return dict(enumerate(_TEKKEN_SPECIAL_NAMES[:special_count]))
    names: dict[int, str] = {}
    for place, item in enumerate(expect(path, "special_tokens", data["special_tokens"], list)):
        entry = expect(path, f"special_tokens[{place}]", item, dict)
        rank = expect_id(path, f"special_tokens[{place}].rank", entry.get("rank"))
        if rank >= special_count or rank in names:
            raise invalid(
                path,
                f"special_tokens[{place}].rank is {rank}, twice or not below {special_count}; fetch the file again",
            )
        names[rank] = expect(path, f"special_tokens[{place}].token_str", entry.get("token_str"), str)
    return names


def read_tiktoken(path: Path, raw: bytes) -> Draft:
    """Returns the draft of a tiktoken file, ids = ranks; special tokens and their ids are not in the file.

    Raises:
        VocabularyError: a line that is not ``base64 rank``, or a rank twice.
    """
    draft = Draft(is_open_ended=True)
    for number, line in enumerate(raw.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not re.fullmatch(rb"\d{1,9}", fields[1]):
            raise invalid(path, f"line {number} is not 'base64 rank': {line[:40]!r}; fetch the file again")
        rank = expect_id(path, f"the rank in line {number}", int(fields[1]))
        if rank in draft.tokens:
            raise invalid(path, f"line {number} has rank {rank} a second time; fetch the file again")
        draft.tokens[rank] = _unbase64(path, f"the token in line {number}", fields[0].decode("ascii", "replace"))
    return draft


def _unbase64(path: Path, where: str, value: object) -> bytes:
    try:
        return base64.b64decode(expect(path, where, value, str), validate=True)
    except ValueError as error:
        raise invalid(path, f"{where} is not base64 ({error}); fetch the file again") from None
