"""Builds models, rewards, captions and the trainer from settings; may import anything but command lines."""
