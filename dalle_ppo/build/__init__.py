"""Settings to objects: models, rewards, captions, trainer; may import everything but command lines."""
