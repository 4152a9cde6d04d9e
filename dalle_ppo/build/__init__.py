"""From settings to objects: models, rewards, captions, trainer; may import every room below the command lines."""
