"""How a token is drawn from masked logits."""
