"""One module a dialect: reads a body, writes answers. Dialects do not know each other."""
