"""The front process: gRPC, bookkeeping, health, and the supervision of workers. It never runs grammar code."""
