"""Pure functions of tensors: noise, KL, advantages, losses, and their records; imports torch alone."""
