"""From a path to a Vocabulary: which format it is, and what the files beside it and the caller add.

Owns: ``load_vocabulary``, the detection of formats by content, and which file decides stop tokens and width.
Knows nothing about: how any format writes its tokens.
Sources: transformers (tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json); vLLM. Like
vLLM, it takes the end-of-sequence ids of the generation config together with the tokenizer's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskd.errors import VocabularyError
from maskd.tokenizer_files.huggingface import read_huggingface
from maskd.tokenizer_files.ranks import read_tekken, read_tiktoken
from maskd.tokenizer_files.reading import Draft, expect, expect_id, invalid, parse_json, read_bounded
from maskd.vocabulary import MAX_VOCAB_SIZE, Vocabulary

__all__ = ["load_vocabulary"]

_FILES_IN_DIRECTORY = ("tokenizer.json", "tekken.json", "tiktoken.model", "tokenizer.model")
_TIKTOKEN_LINE = re.compile(rb"\s*[A-Za-z0-9+/]+={0,2} +\d+\s*(\n|$)")
_NAMING_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NAME_LIST_KEYS = ("additional_special_tokens", "extra_special_tokens")


def load_vocabulary(
    path: str | Path,
    *,
    vocab_size: int | None = None,
    stop_token_ids: Sequence[int] | None = None,
    name: str | None = None,
) -> Vocabulary:
    """Reads a vocabulary from local files; nothing is downloaded, and no model library is imported.

    Formats are told apart by content: a Hugging Face tokenizer.json (byte-level BPE; SentencePiece-style BPE or
    Unigram), a tekken JSON, or a tiktoken rank file. For a directory with one of these, config.json,
    generation_config.json, tokenizer_config.json and special_tokens_map.json are read as well. For a path to a file,
    only that file is read.

    Args:
        path: the file or the directory.
        vocab_size: width of the logits. Default: that of config.json (``text_config`` first), else the format's own,
            else the number of tokens. Added tokens at or beyond this width are dropped: no logit stands for them.
        stop_token_ids: ids that end a sequence, instead of those in the files. Required for tiktoken files, where an id
            beyond the ranks becomes a special token with a made-up name. Default: ``eos_token_id`` of
            generation_config.json (else of config.json) together with the tokenizer's ``eos_token``.
        name: for people and logs. Default: the last part of the path.

    Returns:
        The vocabulary; ids that no file mentions have empty bytes.

    Raises:
        VocabularyError: a file is missing, unreadable, over 256 MiB, malformed or of an unsupported kind; no stop token
            is known; or the logits are narrower than the trained tokens.
    """
    path = Path(path)
    directory, file = _locate(path)
    draft = _read_draft(file)
    if directory is not None:
        _apply_siblings(directory, draft)
    width = draft.vocab_size if vocab_size is None else vocab_size
    stop_ids = draft.stop_ids
    if stop_token_ids is not None:
        stop_ids = tuple(expect_id(file, "a stop token id", token_id) for token_id in stop_token_ids)
    if draft.is_open_ended:
        _add_stops_beyond_ranks(file, draft, stop_ids)
    if not stop_ids:
        raise invalid(file, "no stop token is known; give stop_token_ids, or the directory with generation_config.json")
    if not draft.tokens:
        raise invalid(file, "there are no tokens in it; fetch the file again")
    if width is not None:
        _drop_beyond(file, draft, width)
    token_count = max(draft.tokens) + 1
    tokens = [draft.tokens.get(token_id, b"") for token_id in range(token_count)]
    try:
        return Vocabulary(
            tokens=tokens,
            vocab_size=token_count if width is None else width,
            stop_token_ids=stop_ids,
            special_token_ids=tuple(draft.special_ids),
            name=path.resolve().name if name is None else name,
        )
    except VocabularyError as error:
        raise VocabularyError(f"{file}: {error.message}", **{**error.metadata, "file": file}) from None


def _locate(path: Path) -> tuple[Path | None, Path]:
    """Returns the directory whose other files count, if any, and the tokenizer file."""
    try:
        if not path.exists():
            raise invalid(path, "no such file or directory; give a local path, nothing is downloaded")
        if not path.is_dir():
            return None, path
        candidates = [path / name for name in _FILES_IN_DIRECTORY] + sorted(path.glob("*.tiktoken"))
        file = next((candidate for candidate in candidates if candidate.exists()), None)
    except (OSError, ValueError) as error:
        raise invalid(path, f"cannot be read: {error}") from None
    if file is None:
        raise invalid(
            path,
            f"there is no {', '.join(_FILES_IN_DIRECTORY)} or *.tiktoken in it; give a tokenizer directory or file",
        )
    return path, file


def _read_draft(file: Path) -> Draft:
    raw = read_bounded(file)
    if raw.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        data = parse_json(file, raw)
        if isinstance(data.get("config"), dict) and "vocab" in data:
            return read_tekken(file, data)
        if "model" in data:
            return read_huggingface(file, data)
        raise invalid(
            file, f"neither a tokenizer.json ('model') nor a tekken file ('config', 'vocab'): it has {list(data)[:8]}"
        )
    if raw.startswith(b"version https://git-lfs"):
        raise invalid(file, "a Git LFS pointer, not the file itself; run 'git lfs pull'")
    if _TIKTOKEN_LINE.match(raw):
        return read_tiktoken(file, raw)
    raise invalid(
        file,
        f"of no known format, it starts with {raw[:16]!r}; give a tokenizer.json, a tekken JSON or a tiktoken file "
        "(convert a SentencePiece model with transformers' save_pretrained)",
    )


def _apply_siblings(directory: Path, draft: Draft) -> None:
    """Adds added and special tokens, stop tokens and width to ``draft``, from the files beside the tokenizer."""
    added_file, special_file = directory / "tokenizer_config.json", directory / "special_tokens_map.json"
    tokenizer_config, special_map = _optional_json(added_file), _optional_json(special_file)
    added = tokenizer_config.get("added_tokens_decoder") or {}
    for key, item in expect(added_file, "added_tokens_decoder", added, dict).items():
        where = f"added_tokens_decoder[{key[:20]!a}]"
        token_id = expect_id(added_file, where, int(key) if re.fullmatch(r"[0-9]{1,9}", key) else key)
        entry = expect(added_file, where, item, dict)
        text = expect(added_file, f"{where}.content", entry.get("content"), str)
        draft.add(added_file, token_id, text, special=entry.get("special") is True)
    for file, settings in ((added_file, tokenizer_config), (special_file, special_map)):
        for text in _named_tokens(settings):
            draft.mark_special(file, text)

    generation_file, config_file = directory / "generation_config.json", directory / "config.json"
    config = _optional_json(config_file)
    text_config = expect(config_file, "text_config", config.get("text_config") or {}, dict)
    model_stops = (
        _eos_ids(generation_file, _optional_json(generation_file))
        or _eos_ids(config_file, config)
        or _eos_ids(config_file, text_config)
    )
    eos = _token_text(tokenizer_config.get("eos_token")) or _token_text(special_map.get("eos_token"))
    draft.stop_ids = (*model_stops, *((draft.names[eos],) if eos in draft.names else draft.stop_ids))

    for settings in (config, text_config):  # a model of text and images keeps the width of its logits in text_config
        if settings.get("vocab_size") is not None:
            draft.vocab_size = expect_id(config_file, "vocab_size", settings["vocab_size"])


def _optional_json(file: Path) -> dict[str, Any]:
    return parse_json(file, read_bounded(file)) if file.exists() else {}


def _token_text(value: object) -> str:
    """Returns the text of a token in a configuration: a string, or ``{"content": ...}``; empty if there is none."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _named_tokens(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yields the special tokens that a tokenizer_config.json or special_tokens_map.json names."""
    for key in _NAMING_KEYS:
        yield _token_text(settings.get(key))
    for key in _NAME_LIST_KEYS:
        group = settings.get(key)
        if isinstance(group, (list, dict)):  # transformers writes a list, or a mapping from attribute to token
            yield from map(_token_text, group.values() if isinstance(group, dict) else group)


def _eos_ids(source: Path, settings: Mapping[str, Any]) -> tuple[int, ...]:
    value = settings.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(expect_id(source, "eos_token_id", token_id) for token_id in ids)


def _add_stops_beyond_ranks(file: Path, draft: Draft, stop_ids: Sequence[int]) -> None:
    if not stop_ids:
        raise invalid(file, "a tiktoken file does not say which token ends a sequence; give stop_token_ids")
    for token_id in stop_ids:
        if token_id not in draft.tokens:
            draft.add(file, token_id, f"<SPECIAL_{token_id}>", special=True)


def _drop_beyond(file: Path, draft: Draft, width: int) -> None:
    """Drops added tokens that no logit stands for; raises VocabularyError if trained tokens would be lost as well."""
    if not 0 < width <= MAX_VOCAB_SIZE:
        raise invalid(file, f"vocab_size is {width}; give the width of the logits, from 1 to {MAX_VOCAB_SIZE}")
    beyond = {token_id for token_id in draft.tokens if token_id >= width}
    if lost := beyond - draft.added_ids:
        raise invalid(
            file,
            f"the logits are {width} wide, but {len(lost)} trained tokens lie beyond; "
            "tokenizer and model do not belong together",
        )
    for token_id in beyond:
        del draft.tokens[token_id]
        draft.special_ids.discard(token_id)
