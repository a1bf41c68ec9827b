"""The sequences of one session, and what a step does to them. Pure: no sockets, no shared memory.

``SequenceTable.step`` is the one implementation of a step, for every transport. It never raises for an item: whatever
goes wrong with one sequence is the status of its result, its state is what it was, and its neighbours are served.

``table`` runs the batch; ``item`` one item in full; ``sequence`` is what an item works on; ``rows`` what it writes,
``fill`` how;
``late`` has the items that take too long.
Knows nothing about: how items and results are encoded, where the rows live.
"""

from maskd.sequences.late import Lane
from maskd.sequences.rows import Rows
from maskd.sequences.sequence import HeldGrammar, LateWork
from maskd.sequences.table import SequenceTable, item_of

__all__ = ["HeldGrammar", "Lane", "LateWork", "Rows", "SequenceTable", "item_of"]
