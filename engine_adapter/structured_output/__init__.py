"""Every way in which clients ask for structured output, as one grammar spec."""
