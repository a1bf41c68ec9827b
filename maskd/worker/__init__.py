"""A worker process: backends, grammars, sequences, and the data path. It speaks to the front over one socketpair and to
engines through shared memory; it knows no gRPC."""
