"""The network: its weights, its slots, its captured steps."""
