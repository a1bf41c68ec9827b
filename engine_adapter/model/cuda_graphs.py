"""CUDA graphs of the decode step: the host launches all kernels of a step at once.

Owns: warm-up, capture and replay, one graph per shape. Knows nothing about: what the step computes.
The step must use only memory that stays where it is. Running it twice must do no harm.
Source: the PyTorch documentation, "CUDA semantics", CUDA Graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

__all__ = ["StepGraphs"]

_WARM_UP_RUNS = 2


class StepGraphs:
    """Graphs by shape, captured when the shape is first seen. All share one memory pool: only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def run(self, shape: Hashable, step: Callable[[], None]) -> None:
        """Does what ``step`` does, on the current stream; returns before it is done.

        Args:
            shape: equal for steps that launch the same kernels on the same memory.
            step: launches the kernels, and waits for nothing.
        """
        graph = self._graphs.get(shape)
        if graph is None:
            graph = self._graphs[shape] = self._capture(step)
        graph.replay()

    def _capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        current = torch.cuda.current_stream(self._device)
        side: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):  # libraries allocate and choose kernels on their first runs
                step()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Another thread may use CUDA meanwhile; only the launches of this one belong to the graph.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        self._pool = self._pool or graph.pool()
        return graph
