"""A run's folder: checkpoints, metrics, pictures, provenance; may import config and the packages below it."""
