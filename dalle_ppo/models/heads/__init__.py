"""Heads on CLIP embeddings: NSFW, aesthetic and violence."""
