"""What reads CLIP embeddings: NSFW, aesthetic and violence heads."""
