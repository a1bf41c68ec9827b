"""The sequences of one session, and what a step does to them. Pure: no sockets, no shared memory.

``SequenceTable.step`` is the one implementation of a step, for every transport. It never raises for an item. When an
item fails, its result says why, its sequence stays as it was, and the other items are served.

``table`` runs the batch, and ``item`` one item in full, on one ``sequence``. ``result`` is how an item ends. ``fill``
writes ``rows``; ``deferred`` has those that are filled together. ``late`` has the items that take too long.
Owns: the state of sequences, and what a step means.
Knows nothing about: how items and results are encoded, where the rows live.
"""

from maskd.sequences.item import item_of
from maskd.sequences.late import Lane
from maskd.sequences.result import ItemResult, StepResult
from maskd.sequences.rows import Rows
from maskd.sequences.sequence import HeldGrammar, LateWork
from maskd.sequences.table import SequenceTable

__all__ = ["HeldGrammar", "ItemResult", "Lane", "LateWork", "Rows", "SequenceTable", "StepResult", "item_of"]
