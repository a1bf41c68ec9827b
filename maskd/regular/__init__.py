"""Regular expressions as values: read in a dialect, combined, asked questions, written for a grammar library.

``reader`` reads a pattern, with ``characters`` for what stands for one character. ``assertions`` turns anchors and
look-aheads of the ``pattern`` into set operations. ``expression`` is the tree that remains, of sets of characters
(``charset``); it decides what matches. ``questions`` asks it. ``lark`` writes it as a terminal of llguidance. ``ebnf``
writes it as rules of xgrammar. ``spelling`` is what these two have in common.
"""
