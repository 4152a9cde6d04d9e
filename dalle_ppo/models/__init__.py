"""The networks; may import base, rl and captions."""
