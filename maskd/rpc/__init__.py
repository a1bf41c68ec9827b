"""gRPC as engine and front need it: the codec, errors as statuses, addresses, the calls, and steps inside messages."""
