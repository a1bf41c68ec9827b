"""The engine side of maskd: two hooks for any decode loop, and a small decode loop. Importing it is cheap."""
