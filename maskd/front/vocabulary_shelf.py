"""The front's shelf of vocabularies: each that is loaded, with a nursery and workers of its own.

Owns: the vocabularies, also as bytes, for a nursery that is started again; their nurseries and workers.
Knows nothing about: files (``maskd.tokenizer_files`` reads them), protobuf.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from maskd.errors import CapacityError, NotFoundError
from maskd.front.config import Config
from maskd.front.flights import Flights
from maskd.front.nursery_process import Nursery
from maskd.front.worker_process import Worker
from maskd.front.zygote_process import Zygote
from maskd.grammar import GrammarSpec
from maskd.ipc import messages
from maskd.vocabulary import Vocabulary

__all__ = ["VocabularyShelf"]

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Loaded:
    vocabulary: Vocabulary
    nursery: Nursery
    workers: list[Worker]

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers), self.nursery.stop())


class VocabularyShelf:
    """Vocabularies by fingerprint, kept once.

    Args:
        config: ``vocabularies_limit``, ``workers``.
        zygote: forks the nurseries.
        new_worker: makes a worker, not yet started, for a number and a nursery.

    Attributes:
        workers: of all vocabularies; all have been up once.
    """

    limit_bytes = 64 << 20

    def __init__(self, config: Config, zygote: Zygote, new_worker: Callable[[int, Nursery], Worker]) -> None:
        self._config = config
        self._zygote = zygote
        self._new_worker = new_worker
        self._kept: dict[bytes, _Loaded] = {}
        self._loading: Flights[bytes, _Loaded] = Flights()
        self._turns = asyncio.Semaphore(config.compile_threads)
        self._nursery_numbers, self._worker_numbers = itertools.count(), itertools.count()
        self.workers: list[Worker] = []

    def __iter__(self) -> Iterator[Vocabulary]:
        return (loaded.vocabulary for loaded in self._kept.values())

    def get(self, fingerprint: bytes) -> Vocabulary:
        """Returns a vocabulary. Raises NotFoundError."""
        return self._find(fingerprint).vocabulary

    async def compile(self, fingerprint: bytes, spec: GrammarSpec) -> messages.Compiled | messages.Crashed:
        """See ``Nursery.compile``. Raises NotFoundError as well."""
        return await self._find(fingerprint).nursery.compile(spec)

    async def add(self, vocabulary: Vocabulary) -> tuple[Vocabulary, tuple[str, ...]]:
        """Loads a vocabulary, once, and starts its workers. Returns (the vocabulary that is kept, warnings for people).

        It is built in a process of its own, so the other vocabularies go on, also when it crashes. When the last
        caller is cancelled, the load is given up.

        Raises:
            CapacityError: too many vocabularies. VocabularyError: a backend cannot use it, or it takes too long or too
                much memory.
        """
        fingerprint = await asyncio.to_thread(lambda: vocabulary.fingerprint)
        loaded = self._kept.get(fingerprint)
        if loaded is None:
            limit = self._config.vocabularies_limit
            if fingerprint not in self._loading and len(self._kept) + len(self._loading) >= limit:
                raise CapacityError(
                    f"the daemon holds its {limit} vocabularies", limit="vocabularies_limit", value=limit
                )
            loaded = await self._loading.join(fingerprint, lambda: self._load(vocabulary))
        return loaded.vocabulary, loaded.nursery.warnings

    async def stop(self) -> None:
        """Ends all nurseries and workers, also those of vocabularies that are being loaded."""
        await self._loading.stop()
        await asyncio.gather(*(loaded.stop() for loaded in self._kept.values()))

    def _find(self, fingerprint: bytes) -> _Loaded:
        loaded = self._kept.get(fingerprint)
        if loaded is None:
            raise NotFoundError(
                f"no vocabulary {fingerprint.hex()[:16] or '(empty)'}; upload it first",
                kind="vocabulary",
                fingerprint=fingerprint.hex(),
            )
        return loaded

    async def _load(self, vocabulary: Vocabulary) -> _Loaded:
        async with self._turns:
            data_fd = await _as_file(vocabulary)
            nursery = Nursery(next(self._nursery_numbers), self._config, self._zygote, vocabulary, data_fd)
            workers = [self._new_worker(next(self._worker_numbers), nursery) for _ in range(self._config.workers)]
            loaded = _Loaded(vocabulary, nursery, workers)
            try:
                await nursery.start()
                await asyncio.gather(*(worker.start() for worker in workers))
            except BaseException:  # also when its last caller has left; if it leaves only now, the stop goes on
                await asyncio.shield(loaded.stop())
                raise
            _log.info(
                "vocabulary loaded",
                tokens=len(vocabulary.tokens),
                nursery=nursery.number,
                workers=[worker.number for worker in workers],
            )
            self._kept[vocabulary.fingerprint] = loaded
            self.workers += workers
            return loaded


async def _as_file(vocabulary: Vocabulary) -> int:
    """Writes ``vocabulary`` into a file in memory, and returns its descriptor. A nursery reads it at each start.

    Raises:
        CapacityError: no memory, or no descriptor.
    """
    try:
        fd = os.memfd_create("maskd-vocabulary", os.MFD_CLOEXEC)
    except OSError as error:
        raise CapacityError(f"no room for another vocabulary: {error.strerror}", limit="memory") from None
    try:  # with a descriptor of its own: the thread goes on if the caller is cancelled
        await asyncio.shield(asyncio.to_thread(_write, os.dup(fd), vocabulary))
    except OSError as error:
        os.close(fd)
        raise CapacityError(f"no room for another vocabulary: {error.strerror}", limit="memory") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write(fd: int, vocabulary: Vocabulary) -> None:
    """Writes ``vocabulary`` to ``fd`` and closes it."""
    with open(fd, "wb") as file:
        file.write(vocabulary.to_bytes())
