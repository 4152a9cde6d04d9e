"""The training loop: collect, score, update, save; may import runs and below."""
