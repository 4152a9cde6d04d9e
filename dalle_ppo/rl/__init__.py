"""Pure functions of tensors: noise, KL, advantages, losses, and their records; imports only torch."""
