"""The settings of a run and how they are read, without torch; may import policy, rewards and below."""
