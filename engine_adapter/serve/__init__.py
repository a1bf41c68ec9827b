"""The HTTP front of the decode loop: OpenAI's routes, and those of LoRAX and Ollama, over one engine.

One module per dialect (``chat``, ``completions``, ``responses``, ``lorax``, ``ollama``, ``models``) reads a body and
writes answers; what they share is in ``core`` (request to outputs), ``tools`` and ``calls`` (functions to grammars and
back) and ``errors``. Importing it imports nothing heavy.
"""
