"""Rows onto the device, and into the logits. Importing it imports torch.

An engine with rows of its own calls ``apply_bitmask_``.
"""

from engine_adapter.kernels.apply import apply_bitmask_

__all__ = ["apply_bitmask_"]
