"""The configurations for DALL·E mini and Mega, and what their parts weigh."""

from pathlib import Path

from dalle_ppo.config.command_line import parse_command_line
from dalle_ppo.config.settings import Config

CONFIGS = Path(__file__).parents[1] / "configs"
GIGABYTES = {"mini": 16, "mega": 80}
# Of one float32 network each, in 10^9 bytes: 203 M, 235 M, 219 M and 1 110 M, 1 478 M, 1 444 M weights.
ENCODER, DECODER, CRITIC = (
    {"mini": 0.81, "mega": 4.44},
    {"mini": 0.94, "mega": 5.91},
    {"mini": 0.88, "mega": 5.78},
)
KEYS_VALUES = {"mini": 0.10, "mega": 0.81}
# Saved for the backward pass, an image: of the actor with guidance.
ACTIVATIONS = {"mini": 0.62, "mega": 2.06}
CLIP_AND_VQGAN = 1.9
VQGAN_IMAGE, CACHE_IMAGE = 0.168, {"mini": 0.05, "mega": 0.20}


def load(size: str) -> Config:
    return parse_command_line(["--config", str(CONFIGS / f"laion_nsfw_{size}.yaml")], "test", "")[0]
