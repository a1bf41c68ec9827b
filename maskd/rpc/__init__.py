"""gRPC as both sides need it: errors as statuses, addresses, and the steps of sessions that have no shared memory."""
