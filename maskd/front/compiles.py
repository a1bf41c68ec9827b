"""The compile desk: every grammar that a client sends passes here before a worker sees it.

One compile at a time for the same content, whoever asks; verdicts remembered by content, but only good ones and the
grammar's own errors: a timeout, or a lack of memory, may be the machine's fault. A compile that crashes its library is
tried once more; if it crashes again, or if the grammar was on the worker's hands twice when that died, it is quarantined.
Owns: single flight, verdicts. Knows nothing about: sessions, protobuf, whom to believe (``quarantine``).
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
from maskd.front.quarantine import Key, Quarantine
from maskd.grammar import GrammarSpec

__all__ = ["CompileDesk"]

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
        self._quarantine = Quarantine(config.verdicts)
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
        if self._quarantine.holds(key):
            raise GrammarPoisonedError(
                "this grammar crashed or hung its process twice and is quarantined; change it, or restart the daemon after an update",
                digest=key[1].hex()[:16],
            )

    def blame(self, keys: Iterable[Key | None], why: str) -> None:
        """Holds grammars responsible for a worker that died or hung: the only candidate gets a strike, of several each is
        a suspect. None stands for a grammar that nobody knows any more."""
        candidates = set(keys)
        known = {key for key in candidates if key is not None}
        if len(candidates) > 1:
            self._quarantine.suspect(known)
            _log.warning("grammars suspected", digests=sorted(key[1].hex()[:16] for key in known), why=why)
        else:
            for key in known:
                self._strike(key, why, of_worker=True)

    def is_suspect(self, key: Key) -> bool:
        """Whether the grammar must run alone."""
        return self._quarantine.is_suspect(key)

    def _strike(self, key: Key, why: str, *, of_worker: bool) -> None:
        strikes = self._quarantine.strike(key, of_worker=of_worker)
        self._verdicts.pop(key, None)
        _log.warning("grammar held responsible", digest=key[1].hex()[:16], strikes=strikes, why=why)

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
                        self._strike(key, error.message, of_worker=False)
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
