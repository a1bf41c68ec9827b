"""The compile desk: every grammar that a client sends passes here before a worker sees it.

One compile at a time for the same content, whoever asks; verdicts remembered by content, but only good ones and the
grammar's own errors: a timeout, or a lack of memory, may be the machine's fault. A compile that crashes its library is
tried once more; if it crashes again, or if the grammar was on the worker's hands twice when that died, it is quarantined.
Owns: single flight, verdicts, strikes. Knows nothing about: sessions, protobuf.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import structlog

from maskd import control
from maskd.config import Config
from maskd.errors import BackendError, GrammarError, GrammarPoisonedError, GrammarTimeoutError, GrammarTooLargeError
from maskd.front.nursery import Nursery
from maskd.grammar import GrammarSpec

__all__ = ["CompileDesk", "Key"]

Key = tuple[bytes, bytes]
"""(fingerprint of the vocabulary, digest of the spec)"""
STRIKES = 2
_log = structlog.get_logger()


@dataclass
class _Flight:
    task: asyncio.Task[control.Compiled]
    waiters: int = 0


class CompileDesk:
    """Admits grammars.

    Args:
        config: limits; ``jail`` off admits everything unseen, for trusted sources.
        nursery: where compiles run.
    """

    def __init__(self, config: Config, nursery: Nursery) -> None:
        self._config = config
        self._nursery = nursery
        self._flights: dict[Key, _Flight] = {}
        self._verdicts: OrderedDict[Key, control.Compiled | GrammarError] = OrderedDict()
        self._strikes: dict[Key, int] = {}
        self._suspects: set[Key] = set()
        self._slots = asyncio.Semaphore(config.compile_threads)

    async def admit(self, fingerprint: bytes, spec: GrammarSpec) -> control.Compiled | None:
        """Returns the verdict for ``spec``; with the artefact only for whoever waited for this very compile.

        None: the source is trusted, the worker compiles it unseen.

        Raises:
            GrammarError: or one of its children. UnavailableError: no nursery.
        """
        key = (fingerprint, spec.digest())
        self.check(key)
        if not self._config.jail:
            return None
        known = self._verdicts.get(key)
        if known is not None:
            self._verdicts.move_to_end(key)
            if isinstance(known, GrammarError):
                raise known
            return known
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(self._compile(key, spec)))
            flight.task.add_done_callback(lambda _: self._land(key, flight))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.waiters == 1 and not flight.task.done():
                flight.task.cancel()  # nobody waits any more: the child is killed, and who comes now needs another
                self._land(key, flight)
            raise
        finally:
            flight.waiters -= 1

    def check(self, key: Key) -> None:
        """Raises GrammarPoisonedError if the grammar is quarantined."""
        if self._strikes.get(key, 0) >= STRIKES:
            raise GrammarPoisonedError(
                "this grammar crashed or hung its process twice and is quarantined; change it, or restart the daemon after an update",
                digest=key[1].hex()[:16],
            )

    def strike(self, key: Key, why: str) -> None:
        """Holds a grammar responsible for a process that died or hung; the second time it is quarantined."""
        self._strikes[key] = self._strikes.get(key, 0) + 1
        self._verdicts.pop(key, None)
        _log.warning("grammar held responsible", digest=key[1].hex()[:16], strikes=self._strikes[key], why=why)

    def suspect(self, keys: Iterable[Key]) -> None:
        """Marks grammars that were filled together when their worker died: from now on each is filled alone."""
        self._suspects.update(keys)

    def is_suspect(self, key: Key) -> bool:
        """Whether the grammar must be filled alone."""
        return key in self._suspects

    async def _compile(self, key: Key, spec: GrammarSpec) -> control.Compiled:
        async with self._slots:
            while True:
                try:
                    verdict = await self._nursery.compile(key[0], spec)
                except (GrammarTimeoutError, GrammarTooLargeError):
                    raise
                except GrammarError as error:
                    self._remember(key, error)
                    raise
                except BackendError as error:
                    if error.metadata.get("crashed"):
                        self.strike(key, error.message)
                        self.check(key)
                        continue
                    raise
                self._remember(key, msgspec.structs.replace(verdict, artefact=b""))
                return verdict

    def _land(self, key: Key, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _remember(self, key: Key, verdict: control.Compiled | GrammarError) -> None:
        self._verdicts[key] = verdict
        while len(self._verdicts) > self._config.verdicts:
            self._verdicts.popitem(last=False)
