"""The HTTP front of the decode loop: OpenAI's routes, and those of LoRAX and Ollama, over one engine.

One module per dialect in ``dialects`` reads a body and writes answers. They share ``core`` (requests to outputs),
``fields`` (of bodies), ``tools`` (functions to grammars, outputs to calls) and ``errors``. Importing this package
imports nothing heavy.
"""
