"""Between the daemon's own processes: messages, frames, one end of a channel, and the page of a worker's calls."""
