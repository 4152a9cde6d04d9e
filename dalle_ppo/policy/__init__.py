"""How a policy's images are drawn: rollouts within a memory budget; may import models and below."""
