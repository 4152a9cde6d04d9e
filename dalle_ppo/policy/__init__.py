"""How a policy's images are drawn: rollouts within a budget of memory; may import models and below."""
