"""Text in, text out, over the decode loop. Servers and offline interfaces stand on ``Engine``."""

from engine_adapter.engine.engine import Engine, EngineStats, QueueFullError

__all__ = ["Engine", "EngineStats", "QueueFullError"]
