"""The bundled decode loop: continuous batching over static slots."""
