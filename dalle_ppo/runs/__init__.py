"""A run's folder: checkpoints, metrics, pictures, where numbers came from; may import config and below."""
