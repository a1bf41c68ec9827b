"""The backend that chooses among backends: each grammar goes to the first that compiles it; the report says why.

Owns: the order of trying, and which errors end it.
Knows nothing about: the libraries.

llguidance should come first: it refuses what it cannot enforce. xgrammar compiles more, and reports what it does not
enforce.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from maskd.backends.base import Backend, Grammar, Matcher
from maskd.errors import GrammarError, GrammarTooLargeError, GrammarUnsatisfiableError, GrammarUnsupportedError, clip
from maskd.grammar import GrammarReport, GrammarSpec

__all__ = ["AutoBackend", "ChosenGrammar"]


@dataclasses.dataclass(frozen=True, slots=True)
class ChosenGrammar:
    """A grammar of another backend, with the reason for the choice in its report. See ``Grammar``."""

    grammar: Grammar
    report: GrammarReport
    stop_token_ids: frozenset[int]

    def matcher(self) -> Matcher:
        """See ``Grammar.matcher``."""
        return self.grammar.matcher()


class AutoBackend:
    """Tries ``backends`` in their order. Thread-safe if they are."""

    name = "auto"

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = tuple(backends)

    def compile(self, spec: GrammarSpec) -> Grammar:
        """See ``Backend.compile``. ``report.backend`` names the backend that compiled the grammar.

        Raises:
            GrammarUnsatisfiableError: a backend read the whole grammar and found that nothing matches. No further
                backend is tried.
            GrammarError: no backend can compile it. The message has the reason of each. If all raised the same class,
                this is of that class.
        """
        refusals: list[tuple[str, GrammarError]] = []
        for backend in self._backends:
            try:
                grammar = backend.compile(spec)
            except GrammarUnsatisfiableError:
                raise
            except GrammarError as error:
                refusals.append((backend.name, error))
                continue
            report = dataclasses.replace(grammar.report, backend_reason=_reason(grammar.report, refusals))
            return ChosenGrammar(grammar, report, grammar.stop_token_ids)
        raise _combined(refusals)


def _reason(report: GrammarReport, refusals: Sequence[tuple[str, GrammarError]]) -> str:
    if refusals:
        return clip("; ".join(f"{name} refused it: {error.message}" for name, error in refusals), 512)
    return f"{report.backend} is asked first{'' if report.unenforced else ' and enforces all of it'}"


def _combined(refusals: Sequence[tuple[str, GrammarError]]) -> GrammarError:
    if not refusals:
        return GrammarUnsupportedError("no backend is configured; give at least one")
    first = refusals[0][1]
    messages = {error.message for _, error in refusals}
    if len(messages) == 1:  # our own checks refused it, before any library saw it
        return first
    classes = {type(error) for _, error in refusals}
    # From the most useful answer to the least: malformed, unsupported, too large.
    order = (GrammarError, GrammarUnsupportedError, GrammarTooLargeError)
    raised = classes.pop() if len(classes) == 1 else next((kind for kind in order if kind in classes), GrammarError)
    metadata = next(error.metadata for _, error in refusals if type(error) is raised or raised not in order)
    message = "; ".join(f"{name}: {clip(error.message, 900 // len(refusals))}" for name, error in refusals)
    return raised(
        f"no backend can do this grammar. {message}",
        **{key: value for key, value in metadata.items() if key != "backends"},
    )
