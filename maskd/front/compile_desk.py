"""The compile desk: every grammar that a client sends passes here before a worker sees it.

One compile at a time for the same content, whoever asks; verdicts remembered by content, but only good ones and the
grammar's own errors: a timeout, or a lack of memory, may be the machine's fault. A compile that crashes its library is
tried once more; if it crashes again, or if the grammar was on the worker's hands twice when that died, it is
quarantined.
Owns: single flight, verdicts. Knows nothing about: sessions, protobuf, whom to believe (``quarantine``).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog

from maskd.errors import BackendError, GrammarError, GrammarPoisonedError, GrammarTimeoutError, GrammarTooLargeError
from maskd.front.config import Config
from maskd.front.flights import Flights
from maskd.front.quarantine import Key, Quarantine
from maskd.grammar import GrammarSpec
from maskd.ipc import messages

__all__ = ["CompileDesk"]

_log = structlog.get_logger()


class CompileDesk:
    """Admits grammars.

    Args:
        config: limits; ``jail`` off admits everything unseen, for trusted sources.
        compile_in_child: compiles for the vocabulary of a fingerprint, in a child that is killed when the call is
            cancelled.
    """

    def __init__(
        self, config: Config, compile_in_child: Callable[[bytes, GrammarSpec], Awaitable[messages.Compiled]]
    ) -> None:
        self._config = config
        self._compile_in_child = compile_in_child
        self._flights: Flights[Key, messages.Compiled] = Flights()
        self._verdicts: OrderedDict[Key, messages.Compiled | GrammarError] = OrderedDict()
        self._quarantine = Quarantine(config.verdicts)
        self._slots = asyncio.Semaphore(config.compile_threads)

    async def admit(self, fingerprint: bytes, spec: GrammarSpec) -> messages.Compiled | None:
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
        return await self._flights.join(key, lambda: self._compile(key, spec))

    def check(self, key: Key) -> None:
        """Raises GrammarPoisonedError if the grammar is quarantined."""
        if self._quarantine.holds(key):
            raise GrammarPoisonedError(
                "this grammar crashed or hung its process twice and is quarantined; "
                "change it, or restart the daemon after an update",
                digest=key[1].hex()[:16],
            )

    def blame(self, keys: Iterable[Key | None], why: str) -> None:
        """Holds grammars responsible for a worker that died or hung: the only candidate gets a strike, of several each
        is
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

    async def _compile(self, key: Key, spec: GrammarSpec) -> messages.Compiled:
        async with self._slots:
            while True:
                try:
                    verdict = await self._compile_in_child(key[0], spec)
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

    def _remember(self, key: Key, verdict: messages.Compiled | GrammarError) -> None:
        self._verdicts[key] = verdict
        while len(self._verdicts) > self._config.verdicts:
            self._verdicts.popitem(last=False)
