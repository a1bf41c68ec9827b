"""Closing before the budget ends."""

from __future__ import annotations

from engine_adapter.request import Steering
from maskd.grammar import GrammarSpec
from maskd.vocabulary import Vocabulary


class ClosingVocabulary:
    """Tokens by their bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary


def steering_for(spec: GrammarSpec, vocabulary: ClosingVocabulary) -> Steering | None:
    """Returns None for now."""
    return None
