"""The compile desk: every grammar that a client sends passes here before a worker sees it.

The desk compiles the same content once at a time, for all its callers. It remembers good verdicts and the grammar's
own errors. It forgets a timeout or a lack of memory, for these may be the machine's fault. A compile that crashes its
library is tried once more. A second crash quarantines the grammar, and so does the second worker that dies of it.
Owns: single flight, verdicts. Knows nothing about: sessions, protobuf, how strikes are counted (``quarantine``).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog

from maskd.errors import GrammarError, GrammarPoisonedError, GrammarTimeoutError, GrammarTooLargeError
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
        config: the limits. Without ``jail`` the desk admits every grammar unseen, for trusted sources.
        compile_in_child: compiles for the vocabulary of a fingerprint. Cancelling the call kills the child.
    """

    def __init__(
        self,
        config: Config,
        compile_in_child: Callable[[bytes, GrammarSpec], Awaitable[messages.Compiled | messages.Crashed]],
    ) -> None:
        self._config = config
        self._compile_in_child = compile_in_child
        self._flights: Flights[Key, messages.Compiled] = Flights()
        self._verdicts: OrderedDict[Key, messages.Compiled | GrammarError] = OrderedDict()
        self._quarantine = Quarantine(config.verdicts)
        self._slots = asyncio.Semaphore(config.compile_threads)

    async def admit(self, fingerprint: bytes, spec: GrammarSpec) -> messages.Compiled | None:
        """Returns the verdict for ``spec``. None: the source is trusted, and the worker compiles it unseen.

        Only callers that waited for the compile get the artefact; later callers get the verdict alone.

        Raises:
            GrammarError: or one of its subclasses. BackendError: the library failed. UnavailableError: no nursery.
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
        """Holds grammars responsible for a worker that died or hung.

        A single candidate gets a strike; of several, each becomes a suspect. None stands for a deleted grammar.
        """
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
                if isinstance(verdict, messages.Crashed):
                    self._strike(key, verdict.how, of_worker=False)
                    self.check(key)
                    continue
                self._remember(key, msgspec.structs.replace(verdict, artefact=b""))
                return verdict

    def _remember(self, key: Key, verdict: messages.Compiled | GrammarError) -> None:
        self._verdicts[key] = verdict
        while len(self._verdicts) > self._config.verdicts:
            self._verdicts.popitem(last=False)
