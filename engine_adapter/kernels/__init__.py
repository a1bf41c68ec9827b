"""Rows onto the device, and into the logits."""
