"""CLIP, loaded through open_clip: image and text embeddings for every reward that needs them."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BPE_FILE = "bpe_simple_vocab.txt.gz"


@dataclass
class ClipScorer:
    """A frozen CLIP.

    Args:
        model: open_clip's model, in eval mode.
        tokenizer: open_clip's tokenizer for that model.
        name: open_clip's name for the model ("ViT-L-14"), or the name of a local folder.
        pretrained: open_clip's tag for the weights ("openai"), or "local".
        mean: mean of each colour channel in the model's preprocessing.
        std: standard deviation of each colour channel there.
    """

    model: nn.Module
    tokenizer: object
    name: str
    pretrained: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def image_size(self) -> int:
        size = self.model.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @torch.no_grad()
    def embed_images(self, images: Tensor, microbatch_size: int = 128) -> Tensor:
        """L2-normalised embeddings.

        Args:
            images: float in 0..1, [B, 3, H, W].
            microbatch_size: images per forward pass.

        Returns:
            float32 [B, D].
        """
        mean = torch.tensor(self.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.std, device=self.device)[:, None, None]
        parts = []
        for chunk in images.to(self.device).split(microbatch_size):
            if chunk.shape[-1] != self.image_size:
                chunk = F.interpolate(
                    chunk, size=self.image_size, mode="bicubic", antialias=True, align_corners=False
                ).clamp(0, 1)
            dtype = next(self.model.visual.parameters()).dtype
            parts.append(self.model.encode_image(((chunk - mean) / std).to(dtype)).float())
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def embed_texts(self, captions: list[str]) -> Tensor:
        """L2-normalised embeddings of captions, float32 [B, D]; a repeated caption is computed once."""
        distinct = list(dict.fromkeys(captions))
        tokens = self.tokenizer(distinct).to(self.device)
        embeddings = F.normalize(self.model.encode_text(tokens).float(), dim=-1)
        row = {caption: i for i, caption in enumerate(distinct)}
        return embeddings[torch.tensor([row[caption] for caption in captions], device=self.device)]


def load_clip(model: str, pretrained: str | None, device: str | torch.device = "cpu") -> ClipScorer:
    """Loads a CLIP.

    Args:
        model: a folder in open_clip's layout (`open_clip_config.json`, `open_clip_model.safetensors` and,
            if it has its own vocabulary, `bpe_simple_vocab.txt.gz`), or a name open_clip knows.
        pretrained: open_clip's tag for the weights, or a weight file; None for a folder.
        device: where it runs.

    Raises:
        ValueError: open_clip cannot load this name, tag or folder.
    """
    try:
        return _load_clip(model, pretrained, device)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"clip.model {model!r} with clip.pretrained {pretrained!r} cannot be loaded ({reason}); "
            "give a folder in open_clip's layout, or an open_clip model and tag"
        ) from error


def _load_clip(model: str, pretrained: str | None, device: str | torch.device) -> ClipScorer:
    import open_clip

    folder = Path(model)
    if folder.is_dir():
        source, bpe = f"local-dir:{folder}", folder / BPE_FILE
        clip = open_clip.create_model(source, device=device)
        tokenizer = open_clip.get_tokenizer(source, **({"bpe_path": str(bpe)} if bpe.exists() else {}))
        name, tag = folder.name, "local"
    else:
        if model not in open_clip.list_models():
            raise ValueError(
                f"clip.model is {model!r}: neither a folder nor an open_clip model "
                "(python -c 'import open_clip; print(open_clip.list_models())' lists them)"
            )
        if pretrained is None:
            raise ValueError(f"clip.pretrained is not set; {model} needs a tag such as 'openai' or a file")
        # Weights trained with OpenAI's approximate GELU need it, whether or not the name says -quickgelu:
        # open_clip itself only warns, and computes different embeddings.
        facts = open_clip.get_pretrained_cfg(model, pretrained) or {}
        clip = open_clip.create_model(
            model, pretrained=pretrained, device=device, force_quick_gelu=facts.get("quick_gelu", False)
        )
        tokenizer, name, tag = open_clip.get_tokenizer(model), model, pretrained
    preprocess = clip.visual.preprocess_cfg
    clip.eval().requires_grad_(False)
    return ClipScorer(clip, tokenizer, name, tag, tuple(preprocess["mean"]), tuple(preprocess["std"]))
