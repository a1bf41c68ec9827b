"""Rows for any decode loop: tokens after sampling, rows before the next. What an engine embeds is ``Masker``."""

from engine_adapter.masker.masker import Masker
from engine_adapter.masker.masks import Masks

__all__ = ["Masker", "Masks"]
