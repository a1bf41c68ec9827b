"""The front process: gRPC, bookkeeping, health, supervision of the other processes. It never runs grammar code."""
