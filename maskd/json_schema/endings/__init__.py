"""Endings: the shortest way to end a document of a schema, from any place in it.

Reads the intermediate form of ``compiler``, and is exact where that is.

- ``strings``: JSON strings, whole and begun.
- ``objects`` and ``arrays``: what a shape still needs behind what is there.
- ``shortest``: the shortest document of a node.
- ``open_values``: objects and arrays that are not closed, and what they may still become.
"""
