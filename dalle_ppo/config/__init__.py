"""The settings of a run, torch-free, and how they are read; may import policy, rewards and below."""
