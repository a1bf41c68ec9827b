"""JSON schemas: read strictly, checked, and what each backend makes of them. Pure."""
