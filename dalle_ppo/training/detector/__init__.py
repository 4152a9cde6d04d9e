"""Trains an NSFW detector on CLIP embeddings: images, data, network, calibration, and measurement."""
