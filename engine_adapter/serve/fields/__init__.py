"""What the dialects' bodies have in common: numbers and texts, constraints, conversations, reasoning."""
