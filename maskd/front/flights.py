"""Single flight: callers with the same key share one piece of work, which ends when the last of them leaves.

Owns: the tasks. Knows nothing about: what they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["Flights"]

_Key = TypeVar("_Key")
_Result = TypeVar("_Result")


@dataclass(eq=False)
class _Flight(Generic[_Result]):
    task: asyncio.Task[_Result]
    waiters: int = 0


class Flights(Generic[_Key, _Result]):
    """Work under way, by key."""

    def __init__(self) -> None:
        self._flights: dict[_Key, _Flight[_Result]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: _Key) -> bool:
        return key in self._flights

    async def join(self, key: _Key, start: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Returns what the work for ``key`` returns, or raises what it raises.

        ``start`` begins the work unless it is under way. When the last caller is cancelled, so is the work. A later
        caller begins new work.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(start()))
            flight.task.add_done_callback(lambda task: self._land(key, flight, task))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.waiters == 1 and not flight.task.done():
                flight.task.cancel()
                self._land(key, flight, None)
            raise
        finally:
            flight.waiters -= 1

    async def stop(self) -> None:
        """Cancels all work, and waits until it has ended."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _land(self, key: _Key, flight: _Flight[_Result], ended: asyncio.Task[_Result] | None) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if ended is not None and not ended.cancelled():
            ended.exception()  # marks it as seen: without callers asyncio would complain
