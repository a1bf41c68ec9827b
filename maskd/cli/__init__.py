"""The command line, one module a command; ``maskd.__main__`` is the entry.

A command's module has ``add``, which describes its flags, and the function that runs it.
``serve`` and ``info`` are about a daemon. ``grammar`` is about one grammar; ``check`` and ``sample`` are its two
halves. Both stand on ``walk``. ``wording`` says results to people; ``source`` and ``daemon`` read flags.
"""
