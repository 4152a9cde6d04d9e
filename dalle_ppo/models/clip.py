"""Loads a CLIP through open_clip or transformers; it computes the embeddings that rewards need."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_ppo.base.halving import is_out_of_memory
from dalle_ppo.base.one_line import one_line
from dalle_ppo.models.clip_config import read_clip_config
from dalle_ppo.models.clip_files import CONFIG_FILE, load_weight_file, refuse_activation
from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.clip_transformers import load_transformers_clip
from dalle_ppo.models.dalle.linear import use_frozen_linear

BPE_FILE = "bpe_simple_vocab.txt.gz"
EMPTY_VOCABULARY = 514  # single bytes with and without the end of a word, and the two ends of a text
MAX_REASON = 300  # the error of a failed strict load names every tensor


@dataclass(kw_only=True)
class OpenClip(ClipScorer):
    """A frozen CLIP from open_clip.

    Args:
        model: open_clip's model, in eval mode.
        tokenizer: open_clip's tokenizer for that model.
        preprocess: open_clip's preprocessing: mean and std of each colour channel, interpolation and
            resize_mode. For a weight file, the model's own `preprocess_cfg` holds defaults instead.
    """

    model: nn.Module
    tokenizer: object
    preprocess: dict

    @property
    def image_size(self) -> int:
        size = self.model.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def crops(self) -> bool:
        """Whether it learned from the central squares of images.

        Raises:
            ValueError: it learned from padded images, or nothing says what it learned from.
        """
        mode = self.preprocess["resize_mode"]
        if mode is None:
            raise ValueError(
                f"CLIP {self.name} ({self.pretrained}): published weights of {self.name} learned from "
                f"cropped or from squashed images, and the file does not say which; put its {CONFIG_FILE} "
                "with a preprocess_cfg next to it"
            )
        if mode not in ("shortest", "squash"):
            raise ValueError(f"CLIP {self.name} pads images (resize_mode {mode}), which is not supported")
        return mode == "shortest"

    def resized(self, images: Tensor) -> Tensor:
        """Images [b, 3, H, W] at the model's size, squashed if they are not square."""
        if images.shape[-2:] == (self.image_size, self.image_size):
            return images
        mode = "bilinear" if self.preprocess.get("interpolation") == "bilinear" else "bicubic"
        size = (self.image_size, self.image_size)
        return F.interpolate(images, size=size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Embeddings [b, D] of images [b, 3, H, W], resized and normalised as the model needs."""
        mean, std = (
            torch.tensor(tuple(self.preprocess[name]), device=self.device)[:, None, None]
            for name in ("mean", "std")
        )
        images = self.resized(images)
        dtype = next(self.model.visual.parameters()).dtype
        return self.model.encode_image(((images - mean) / std).to(dtype))

    def encode_texts(self, captions: list[str]) -> Tensor:
        """Embeddings [b, D] of captions."""
        return self.model.encode_text(self.tokenizer(captions).to(self.device))


def load_clip(
    model: str,
    pretrained: str | None,
    device: str | torch.device = "cpu",
    quick_gelu: bool | None = None,
    same_as: str | None = None,
) -> ClipScorer:
    """Loads a CLIP.

    Args:
        model: a folder in open_clip's layout (`open_clip_config.json`, `open_clip_model.safetensors` and,
            if it has its own vocabulary, `bpe_simple_vocab.txt.gz`) or transformers' (`config.json`,
            `model.safetensors`, tokenizer), or a name open_clip knows.
        pretrained: open_clip's tag for the weights, or a weight file; None for a folder.
        device: where it runs.
        quick_gelu: whether a weight file needs QuickGELU; None if that can be detected.
        same_as: the CLIP that the user says this is, as "ViT-L-14:openai".

    Raises:
        ValueError: it cannot be loaded, or the activation of a weight file cannot be detected.
        RuntimeError: memory has run out.
    """
    try:
        clip = _load(model, pretrained, quick_gelu)
    except (RuntimeError, OSError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]} ..."
        raise ValueError(
            f"clip.model {model!r} with clip.pretrained {pretrained!r} cannot be loaded ({reason}); "
            "give a folder in open_clip's or transformers' layout, or an open_clip model and tag"
        ) from error
    clip.same_as = same_as
    given = {"clip_model": model, "clip_pretrained": pretrained, "quick_gelu": quick_gelu, "same_as": same_as}
    clip.settings = {name: value for name, value in given.items() if value is not None}
    clip.model.eval().requires_grad_(False).to(device)
    use_frozen_linear(clip.model)
    return clip


def _load(model: str, pretrained: str | None, quick_gelu: bool | None) -> ClipScorer:
    folder = Path(model)
    if folder.is_dir():
        if pretrained is not None:
            raise ValueError(
                f"clip.pretrained is {pretrained!r}, but clip.model {model!r} is a folder with its own "
                "weights; leave clip.pretrained out"
            )
        if not (folder / CONFIG_FILE).is_file() and (folder / "config.json").is_file():
            return load_transformers_clip(folder, quick_gelu)
        return _load_folder(folder, quick_gelu)
    import open_clip

    if model not in open_clip.list_models():
        raise ValueError(
            f"clip.model is {model!r}: neither a folder nor an open_clip model "
            "(python -c 'import open_clip; print(open_clip.list_models())' lists them)"
        )
    if pretrained is None:
        raise ValueError(f"clip.pretrained is not set; {model} needs a tag such as 'openai' or a file")
    if not open_clip.get_pretrained_cfg(model, pretrained) and Path(pretrained).is_file():
        clip, tag, preprocess = load_weight_file(model, Path(pretrained), quick_gelu)
    else:
        clip, tag = _load_tag(model, pretrained, quick_gelu), pretrained
        preprocess = clip.visual.preprocess_cfg
    return OpenClip(
        model=clip,
        tokenizer=open_clip.get_tokenizer(model),
        name=model,
        pretrained=tag,
        preprocess=preprocess,
    )


def _load_folder(folder: Path, quick_gelu: bool | None) -> OpenClip:
    """Loads a CLIP from a folder in open_clip's layout."""
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"clip.model {str(folder)!r}: {CONFIG_FILE} is missing; download the folder again")
    config = read_clip_config(folder / CONFIG_FILE)
    clip, tokenizer = _open_folder(folder)
    refuse_activation(quick_gelu, bool(config["model_cfg"].get("quick_gelu")), f"{folder / CONFIG_FILE}")
    preprocess = clip.visual.preprocess_cfg
    return OpenClip(
        model=clip, tokenizer=tokenizer, name=folder.name, pretrained="local", preprocess=preprocess
    )


def _open_folder(folder: Path) -> tuple[nn.Module, object]:
    """Model and tokenizer of a folder in open_clip's layout.

    Raises:
        ValueError: it is damaged.
        RuntimeError, OSError, ImportError: open_clip says why it cannot load it.
    """
    import open_clip

    source, bpe = f"local-dir:{folder}", folder / BPE_FILE
    try:
        # Without require_pretrained, a folder that lacks weights loads as a random CLIP.
        clip = open_clip.create_model(source, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(source, **({"bpe_path": str(bpe)} if bpe.exists() else {}))
        known, needed = getattr(tokenizer, "vocab_size", None), getattr(clip, "vocab_size", None)
        if bpe.exists() and known is not None and known <= EMPTY_VOCABULARY:
            raise ValueError(f"{BPE_FILE} holds no merges")  # open_clip reads an empty file without an error
        if bpe.exists() and None not in (known, needed) and known > needed:
            raise ValueError(f"{BPE_FILE} makes {known} tokens, the model has {needed}")
    except (RuntimeError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # a damaged file can make a reader fail anywhere
        raise ValueError(
            f"clip.model {str(folder)!r} is damaged, or needs another version of open_clip; download the "
            f"folder again, or install that ({one_line(error)})"
        ) from error
    return clip, tokenizer


def _load_tag(model: str, tag: str, quick_gelu: bool | None) -> nn.Module:
    """Loads open_clip's model with published weights."""
    import open_clip

    # Weights trained with OpenAI's approximate GELU need it, whether or not the name says -quickgelu:
    # open_clip itself only warns, and computes different embeddings.
    facts = open_clip.get_pretrained_cfg(model, tag) or {}
    needed = facts.get("quick_gelu", False)
    if facts:
        named = open_clip.get_model_config(model).get("quick_gelu", False)
        refuse_activation(quick_gelu, needed or named, f"open_clip's tag {tag}")
    return open_clip.create_model(model, pretrained=tag, force_quick_gelu=needed)
