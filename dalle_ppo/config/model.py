"""Which model is trained."""

from dataclasses import dataclass


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
