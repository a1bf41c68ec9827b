"""What operators see of the daemon."""
