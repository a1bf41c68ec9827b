"""Sessions in shared memory: the byte layout, the segments, and an engine's side of a session."""
