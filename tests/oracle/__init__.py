"""The oracle: random steps through a real daemon, every result predicted and every row compared bit for bit.

``reference`` has the right row of a history: that of a new matcher. ``model`` predicts what an item comes to, late ones
included. ``driver`` thinks of items and keeps them as a script; ``run`` drives sessions and makes the script of a
difference shorter.
People run ``python -m tests.oracle``; ``tests/e2e/test_fuzz_steps.py`` is the share of ``make test``.
"""
