"""The start-up report: what in a vocabulary is legal and yet worth a look.

Each warning is about something that once surprised a grammar library or the users of an engine.
Owns: ``validate_vocabulary`` and its thresholds.
Knows nothing about: files and formats; it reads a Vocabulary only.
"""

from __future__ import annotations

from collections.abc import Sequence

from maskd.vocabulary import Vocabulary

__all__ = ["LONG_TOKEN_BYTES", "validate_vocabulary"]

LONG_TOKEN_BYTES = 2048
_EXAMPLES = 5


def validate_vocabulary(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Returns warnings for people, one sentence each; empty if nothing looks unusual. None of them is an error."""
    special = set(vocabulary.special_token_ids)
    text = {token_id: token for token_id, token in enumerate(vocabulary.tokens) if token_id not in special}
    first_ids: dict[bytes, int] = {}
    duplicates = [
        token_id for token_id, token in text.items() if token and first_ids.setdefault(token, token_id) != token_id
    ]
    empty = [token_id for token_id, token in text.items() if not token]
    long = [token_id for token_id, token in enumerate(vocabulary.tokens) if len(token) > LONG_TOKEN_BYTES]
    missing = [byte for byte in range(256) if bytes([byte]) not in first_ids]
    padding = vocabulary.vocab_size - len(vocabulary.tokens)

    warnings = []
    if empty:
        warnings.append(f"{_ids(empty)} stand for no bytes and are not special; they are never allowed")
    if duplicates:
        warnings.append(f"{_ids(duplicates)} repeat the bytes of a lower id; a grammar allows either or both")
    if long:
        warnings.append(f"{_ids(long)} have more than {LONG_TOKEN_BYTES} bytes")
    if len(vocabulary.stop_token_ids) > 1:
        warnings.append(
            f"{len(vocabulary.stop_token_ids)} stop tokens end a sequence: {_ids(vocabulary.stop_token_ids)}"
        )
    if missing:
        sample = ", ".join(f"0x{byte:02x}" for byte in missing[:_EXAMPLES])
        warnings.append(
            f"{len(missing)} of 256 bytes are no token of their own ({sample}{_more(missing)}); "
            "some texts may be out of reach"
        )
    if padding:
        warnings.append(f"{padding} of {vocabulary.vocab_size} logits stand for no token; this tail is never allowed")
    return tuple(warnings)


def _ids(ids: Sequence[int]) -> str:
    return f"{len(ids)} token{'s' * (len(ids) != 1)} ({', '.join(map(str, ids[:_EXAMPLES]))}{_more(ids)})"


def _more(items: Sequence[int]) -> str:
    return ", …" * (len(items) > _EXAMPLES)
