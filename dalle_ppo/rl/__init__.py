"""The mathematics of PPO on image tokens: pure functions of tensors that import only torch."""
