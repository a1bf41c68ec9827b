"""Steerings: they take some tokens away from the sampler, so that an output or its reasoning ends in time."""
