"""A matcher around a matcher: what a grammar cannot hold is looked after beside it.

- ``values``: when two JSON values are equal, and which ones were there.
- ``record``: a text that grows.
- ``scanner``: the text of a sequence, byte by byte, along the places of a watch.
- ``agreement`` and ``rivals``: whether a beginning may still become a value that was there.
- ``outlook``: whether a beginning may still become another one.
- ``tokens``: which tokens of a vocabulary are worth a look where.
- ``matcher``: the matcher, which takes those tokens out of its rows that lead nowhere.
"""
