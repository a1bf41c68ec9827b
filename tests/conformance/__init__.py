"""How exactly each front end of JSON Schema does what real schemas and the official suite ask for."""
