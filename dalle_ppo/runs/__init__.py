"""A run's folder: checkpoints, metrics, provenance, pictures; may import config and below."""
