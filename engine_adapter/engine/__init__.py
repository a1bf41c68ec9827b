"""Text in, text out, over the decode loop. What servers and offline interfaces stand on is ``Engine``."""

from engine_adapter.engine.engine import Engine, EngineStats, QueueFullError

__all__ = ["Engine", "EngineStats", "QueueFullError"]
