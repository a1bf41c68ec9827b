"""JSON Schema to a grammar, exactly, in any property order.

A schema goes through these stages, one module each:

- ``documents``: what a reference leads to.
- ``reading`` and ``evaluated``: keywords to the intermediate form.
- ``nodes``, ``values`` and ``presence``: that form, and its algebra.
- ``emptiness`` with ``contents``: what nothing satisfies; ``contradiction``: why.
- ``lowering`` with ``arrays`` and ``objects``: the form to rules.
- ``watch``: what no grammar can hold, and where it is looked after beside one.
- ``symbols`` and ``rules``: names for what is written, and rules to Lark.
- ``ebnf``: the form to rules of xgrammar, as far as those can say it.

``numbers`` and ``formats`` are the languages of numbers and of named formats. ``refusals`` gives errors their place in
the schema.
"""
