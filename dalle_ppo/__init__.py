"""Token-level PPO for autoregressive text-to-image models."""
