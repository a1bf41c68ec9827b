"""Tokenizer files: the vocabulary of a model, read from the files that it is published with.

Owns: ``load_vocabulary`` (Hugging Face tokenizer.json, tekken, tiktoken), and the report ``validate_vocabulary``.
Knows nothing about: encoding text, grammar libraries, gRPC; it needs no tokenizer library.
Formats: huggingface/tokenizers (tokenizer.json), mistralai/mistral-common (tekken), openai/tiktoken (rank files).
"""

from maskd.tokenizer_files.loading import load_vocabulary
from maskd.tokenizer_files.report import validate_vocabulary

__all__ = ["load_vocabulary", "validate_vocabulary"]
