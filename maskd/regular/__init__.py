"""Regular expressions as values: read from ECMA-262, combined, asked questions, written for a grammar library.

``ecma`` reads a pattern. ``assertions`` turns its anchors and look-aheads into set operations. ``expression`` is the
tree that remains, ``derivatives`` decides what it matches, and ``lark`` writes it as a terminal.
"""
