"""Between the daemon's own processes: messages in frames, one end of a channel, and the page in which a worker says
what it computes."""
