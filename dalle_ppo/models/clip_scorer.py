"""What every CLIP does, whatever library computes it: L2-normalised embeddings of images and texts."""

from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_ppo.models.precision import autocast, narrow


@dataclass(kw_only=True)
class ClipScorer:
    """A frozen CLIP; a subclass has its `model` and says how a batch is encoded.

    Args:
        name: open_clip's name for the model ("ViT-L-14"), or the name of a local folder.
        pretrained: open_clip's tag for the weights ("openai"), a weight file, or "local" for a folder.
        same_as: the CLIP that the user says it is, as "ViT-L-14:openai"; None if not said.
        settings: what it was loaded with, by name of the setting.
        dtype: of its products; `narrowed` changes it.
    """

    name: str
    pretrained: str
    same_as: str | None = None
    settings: dict[str, object] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    @property
    def crops(self) -> bool:
        """Whether it learned from the central squares of images, rather than from squashed images."""
        raise NotImplementedError

    def resized(self, images: Tensor) -> Tensor:
        """Images [b, 3, H, W] in 0..1, resized as `encode_images` does."""
        raise NotImplementedError

    def encode_images(self, images: Tensor) -> Tensor:
        """Embeddings [b, D] float, of any norm, of images [b, 3, H, W] in 0..1 on the CLIP's device."""
        raise NotImplementedError

    def narrowed(self, dtype: torch.dtype) -> Self:
        """This CLIP, changed in place, with matrices and products in `dtype`."""
        narrow(self.model, dtype)
        self.dtype = dtype
        return self

    @torch.no_grad()
    def logits(self, cosines: Tensor) -> Tensor:
        """What the CLIP was trained on: cosines, float32 of any shape, divided by its temperature.

        SigLIP also adds a bias; the sigmoid is then the probability that image and text belong together.
        """
        bias = getattr(self.model, "logit_bias", None)
        scaled = self.model.logit_scale.float().exp() * cosines
        return scaled if bias is None else scaled + bias.float()

    def encode_texts(self, captions: list[str]) -> Tensor:
        """Embeddings [b, D] float, of any norm."""
        raise NotImplementedError

    @torch.no_grad()
    def embed_images(self, images: Tensor, microbatch_size: int = 128) -> Tensor:
        """L2-normalised embeddings.

        Args:
            images: float in 0..1, [B, 3, H, W].
            microbatch_size: images per forward pass.

        Returns:
            float32 [B, D].
        """
        chunks = images.to(self.device).split(microbatch_size)
        with autocast(self.device, self.dtype):
            parts = [self.encode_images(chunk).float() for chunk in chunks]
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def embed_texts(self, captions: list[str]) -> Tensor:
        """L2-normalised embeddings of captions, float32 [B, D]; a repeated caption is computed once."""
        distinct = list(dict.fromkeys(captions))
        with autocast(self.device, self.dtype):
            embeddings = self.encode_texts(distinct).float()
        embeddings = F.normalize(embeddings, dim=-1)
        row = {caption: i for i, caption in enumerate(distinct)}
        return embeddings[torch.tensor([row[caption] for caption in captions], device=self.device)]
