"""A worker process: backends, grammars, sequences, and the data path.

It speaks to the front over one socketpair, and to engines through shared memory. It knows no gRPC.
"""
