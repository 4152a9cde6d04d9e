"""A KL coefficient that adjusts itself. No torch, because settings import this."""

import math
from dataclasses import dataclass, replace

# The largest relative distance from the target that one batch acts on (https://arxiv.org/abs/1909.08593).
ERROR_CLIP = 0.2


@dataclass(frozen=True)
class AdaptiveKL:
    """A KL coefficient that steers the policy towards a target distance from the reference.

    Args:
        kl_coef: current coefficient, > 0.
        target: desired KL in nats per image (summed over the T tokens), > 0.
        horizon: images over which the full relative error is corrected; larger is slower. It must exceed
            `ERROR_CLIP` times the batch size, or a batch could turn the coefficient negative.

    Source: https://arxiv.org/abs/1909.08593 section 2.2 (Ziegler et al.); `AdaptiveKLController` in
        https://github.com/openai/lm-human-preferences.
    """

    kl_coef: float
    target: float
    horizon: float

    def update(self, kl_per_image_nats: float, num_images: int) -> "AdaptiveKL":
        """Return the controller after one batch.

        Args:
            kl_per_image_nats: measured mean KL of the batch, nats per image.
            num_images: images in the batch.

        Returns:
            A controller whose `kl_coef` is multiplied by `1 + error * num_images / horizon`, with `error` the
            relative distance from the target, clipped at `ERROR_CLIP` either way.

        Raises:
            ValueError: the KL is not finite.
        """
        if not math.isfinite(kl_per_image_nats):
            raise ValueError(f"adaptive KL: the measured KL is {kl_per_image_nats}; it must be finite")
        error = (kl_per_image_nats - self.target) / self.target
        error = min(max(error, -ERROR_CLIP), ERROR_CLIP)
        return replace(self, kl_coef=self.kl_coef * (1.0 + error * num_images / self.horizon))
