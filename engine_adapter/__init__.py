"""The engine side of maskd: two hooks for any decode loop, and a small decode loop of its own. Importing it imports
nothing heavy."""
