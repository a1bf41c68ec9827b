"""maskd: grammar masks as a service. Importing this package imports nothing heavy; start at ``maskd.client``."""

__version__ = "0.1.0"
