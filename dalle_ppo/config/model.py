"""Which model is trained."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """Which text-to-image model is trained."""

    path: str = "builtin"
    """The model to start from: "builtin" for the built-in world's; "mini" or "mega" for DALL·E's weights from
    the hub, or a folder that contains them; a folder written by `pretrain`; or the folder of a run, whose
    policy is then both the starting point and the reference. With mini and mega, set `policy.guidance` too:
    1.5 suits the built-in world, 10 to 16 is usual for them."""
    revision: str | None = None
    """Commit of the hub repository kuprel/min-dalle, for "mini" and "mega"; null uses its main branch. The
    run's config.yaml records the commit that was used, and every later step loads that one."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format in which training stores the matrices of what is never trained: text encoder, reference,
    VQGAN and the reward's CLIP, and with `actor.adapter` lora the actor's frozen body. bfloat16 halves their
    memory and needs `update.dtype` bfloat16. Afterwards, evaluate, generate and export use float32."""
