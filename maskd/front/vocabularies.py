"""The front's shelf of vocabularies: what is loaded, and in every worker.

Owns: the vocabularies as bytes, so that a restarted nursery gets them back.
Knows nothing about: files (``maskd.tokenizer_files`` reads them), protobuf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from maskd.config import Config
from maskd.errors import CapacityError, NotFoundError
from maskd.front.nursery import Nursery
from maskd.front.workers import Worker
from maskd.tokenizer_files import validate_vocabulary
from maskd.vocabulary import Vocabulary

__all__ = ["VocabularyShelf"]


class VocabularyShelf:
    """Vocabularies by fingerprint, kept once.

    Args:
        config: ``vocabularies_limit``.
        nursery: gets every vocabulary first, so that every worker forked later has it.
        workers: everyone gets every vocabulary.
    """

    limit_bytes = 64 << 20

    def __init__(self, config: Config, nursery: Nursery, workers: Sequence[Worker]) -> None:
        self._limit = config.vocabularies_limit
        self._nursery = nursery
        self._workers = workers
        self._kept: dict[bytes, Vocabulary] = {}
        self._adding = asyncio.Lock()

    def __iter__(self) -> Iterator[Vocabulary]:
        return iter(self._kept.values())

    def get(self, fingerprint: bytes) -> Vocabulary:
        """Returns a vocabulary. Raises NotFoundError."""
        vocabulary = self._kept.get(fingerprint)
        if vocabulary is None:
            raise NotFoundError(
                f"no vocabulary {fingerprint.hex()[:16] or '(empty)'}; upload it first", kind="vocabulary", fingerprint=fingerprint.hex()
            )
        return vocabulary

    async def add(self, vocabulary: Vocabulary) -> tuple[Vocabulary, tuple[str, ...]]:
        """Loads a vocabulary into every worker, once: (the one that is kept, what looks unusual).

        Raises:
            CapacityError: too many vocabularies. MaskdError: a backend cannot use it.
        """
        async with self._adding:
            warnings = await asyncio.to_thread(validate_vocabulary, vocabulary)
            kept = self._kept.get(vocabulary.fingerprint)
            if kept is not None:
                return kept, warnings
            if len(self._kept) >= self._limit:
                raise CapacityError(f"the daemon holds its {self._limit} vocabularies", limit="vocabularies_limit", value=self._limit)
            data = vocabulary.to_bytes()
            await self._nursery.load_vocabulary(vocabulary.name, data)
            self._kept[vocabulary.fingerprint] = vocabulary  # a worker that is forked from here on has it
            await asyncio.gather(*(worker.load_vocabulary(vocabulary.name, data) for worker in self._workers))
            return vocabulary, warnings

    def keep(self, vocabulary: Vocabulary) -> None:
        """Keeps a vocabulary that the nursery will load when it starts."""
        self._kept[vocabulary.fingerprint] = vocabulary

    def as_bytes(self) -> list[tuple[str, bytes]]:
        """Returns (name, bytes) of every vocabulary, for a nursery that starts."""
        return [(vocabulary.name, vocabulary.to_bytes()) for vocabulary in self._kept.values()]
