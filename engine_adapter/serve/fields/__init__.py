"""What the dialects' bodies have in common: reading, generation, conversations, reasoning."""
