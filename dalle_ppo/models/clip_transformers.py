"""Loads CLIP, SigLIP and SigLIP 2 from a folder in transformers' layout."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from dalle_ppo.base.one_line import one_line
from dalle_ppo.models.clip_files import refuse_activation
from dalle_ppo.models.clip_scorer import ClipScorer

# Type in config.json -> the classes of the model and of its image processor.
# SigLIP 2 of a fixed size is published as "siglip"; "siglip2" is NaFlex, which keeps the aspect ratio.
CLASSES = {
    "clip": ("CLIPModel", "CLIPImageProcessor"),
    "siglip": ("SiglipModel", "SiglipImageProcessor"),
    "siglip2": ("Siglip2Model", "Siglip2ImageProcessor"),
}
INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as in the files
PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
# What transformers raises for folders that it cannot read.
_DAMAGE = (
    *(OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, AttributeError),
    *(SafetensorError, pickle.UnpicklingError),
)
WAY_OUT = "give a folder in open_clip's layout, or a reward function of your own that reads it"


@dataclass(kw_only=True)
class TransformersClip(ClipScorer):
    """A frozen CLIP from transformers.

    Args:
        model: the model, in eval mode.
        processor: its image processor.
        tokenizer: its tokenizer.
        padding: how texts are padded: "longest", or "max_length" as SigLIP was trained.
        lowercase: whether texts are lowercased first.
    """

    model: nn.Module
    processor: object
    tokenizer: object
    padding: str
    lowercase: bool

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def crops(self) -> bool:
        """Whether it learned from the central squares of images."""
        return "shortest_edge" in dict(self.processor.size or {})

    @property
    def _resizing(self) -> tuple[dict[str, int], str] | None:
        """Size and interpolation, if we resize; None if transformers does."""
        size, mode = dict(self.processor.size or {}), INTERPOLATION.get(int(self.processor.resample))
        known = size.keys() <= {"height", "width", "shortest_edge"} and size and mode
        return (size, mode) if known else None

    def resized(self, images: Tensor) -> Tensor:
        """Images [b, 3, H, W] as the folder says; unchanged if transformers must resize them."""
        if self._resizing is None or not self.processor.do_resize:
            return images
        return _resized(images, *self._resizing)

    def encode_images(self, images: Tensor) -> Tensor:
        """Embeddings [b, D] of images [b, 3, H, W], resized, cropped and normalised as the folder says."""
        if self._resizing is not None:
            # Resized as for open_clip: transformers' 8-bit resizing moves embeddings by 5e-5 (cosine).
            inputs = self.processor(
                images=list(self.resized(images)), do_resize=False, do_rescale=False, return_tensors="pt"
            )
        else:
            pixels = (images * 255).round().clamp(0, 255).to(torch.uint8)
            inputs = self.processor(images=list(pixels), return_tensors="pt")
        inputs = inputs.to(self.device)
        dtype = self.model.logit_scale.dtype
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        return _embeddings(self.model.get_image_features(**inputs))

    def encode_texts(self, captions: list[str]) -> Tensor:
        """Embeddings [b, D] of captions.

        No mask is passed: CLIP ignores tokens after the end of the text, and SigLIP was trained without one.
        """
        texts = [text.lower() for text in captions] if self.lowercase else captions
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            texts, padding=self.padding, truncation=True, max_length=length, return_tensors="pt"
        )
        return _embeddings(self.model.get_text_features(input_ids=tokens["input_ids"].to(self.device)))


def _resized(images: Tensor, size: dict[str, int], mode: str) -> Tensor:
    """Resizes images [b, 3, H, W] to {height, width}, or to {shortest_edge} with the same aspect ratio."""
    height, width = images.shape[-2:]
    if "shortest_edge" in size:
        short = min(height, width)
        wanted = tuple(int(size["shortest_edge"] * side / short) for side in (height, width))
    else:
        wanted = (size["height"], size["width"])
    if wanted == (height, width):
        return images
    return F.interpolate(images, size=wanted, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def load_transformers_clip(folder: Path, quick_gelu: bool | None) -> TransformersClip:
    """Loads a folder with `config.json`, weights and a tokenizer; fetches nothing and runs no code from it.

    Args:
        folder: the folder.
        quick_gelu: the user's setting, which must agree with config.json; None if it is not set.

    Raises:
        ValueError: it is another kind of model, a part is missing or damaged, or `quick_gelu` is wrong.
    """
    kind = _kind(folder)
    with _quiet():
        model = _load_model(folder, kind)
        processor = _load_processor(folder, kind, model.config.vision_config)
        tokenizer = _load_tokenizer(folder, model.config.text_config.vocab_size)
    told = getattr(model.config.text_config, "hidden_act", "") == "quick_gelu"
    refuse_activation(quick_gelu, told, f"{folder / 'config.json'}")
    return TransformersClip(
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        padding="longest" if kind == "clip" else "max_length",
        # SigLIP 2 was trained on lower case, but its folders name a Gemma tokenizer, which keeps capitals.
        # Source: Siglip2Tokenizer in transformers, which lowercases.
        lowercase=type(tokenizer).__name__.startswith("Gemma"),
        name=folder.name,
        pretrained="local",
    )


def _kind(folder: Path) -> str:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"clip.model {str(folder)!r}: config.json is not JSON that describes a model ({one_line(error)})"
        ) from None
    if kind not in CLASSES:
        raise ValueError(
            f"clip.model {str(folder)!r}: config.json has model_type {kind!r}; in transformers' layout, only "
            f"{', '.join(CLASSES)} can be read, with both encoders; {WAY_OUT}"
        )
    return kind


def _load_model(folder: Path, kind: str) -> nn.Module:
    import transformers

    loader = getattr(transformers, CLASSES[kind][0])
    try:
        # By default, transformers 5 keeps the file's precision.
        model, info = loader.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except _DAMAGE as error:
        raise _unreadable(folder, "the model", error) from error
    # Old files also store position_ids, which are not weights.
    loose = {
        what: sorted(str(key) for key in info[what] if not str(key).endswith("position_ids"))
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    for what, keys in loose.items():
        if keys:
            raise ValueError(
                f"clip.model {str(folder)!r}: {len(keys)} {what.replace('_', ' ')} in its weights, such as "
                f"{keys[0]}; the weights do not belong to this config.json; {WAY_OUT}"
            )
    return model


def _load_processor(folder: Path, kind: str, vision) -> object:
    """The folder's image processor; without a file for it, that of published models of this size."""
    import transformers

    loader = getattr(transformers, CLASSES[kind][1])
    if any((folder / name).is_file() for name in PREPROCESSING_FILES):
        try:
            return loader.from_pretrained(folder, local_files_only=True)
        except _DAMAGE as error:
            raise _unreadable(folder, "the preprocessing", error) from error
    if kind == "siglip2":
        return loader(patch_size=vision.patch_size, max_num_patches=vision.num_patches)
    side = vision.image_size
    square = {"height": side, "width": side}
    return loader(size={"shortest_edge": side}, crop_size=square) if kind == "clip" else loader(size=square)


def _load_tokenizer(folder: Path, vocab_size: int) -> object:
    import transformers

    # Without a file, transformers 5 makes an empty tokenizer instead of failing.
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"clip.model {str(folder)!r}: no tokenizer ({', '.join(TOKENIZER_FILES)}); put the "
            "published model's tokenizer files next to config.json"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # each kind of tokenizer fails in its own way
        raise _unreadable(folder, "the tokenizer", error) from error
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"clip.model {str(folder)!r}: its tokenizer has {len(tokenizer)} tokens, the model {vocab_size}"
            "; put the model's own tokenizer next to config.json"
        )
    return tokenizer


def _unreadable(folder: Path, what: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    # SigLIP's tokenizer needs it; without it and tokenizer_config.json, transformers finds no tokenizer.
    lacks_package = what == "the tokenizer" and find_spec("sentencepiece") is None
    way_out = f"pip install sentencepiece protobuf, or {WAY_OUT}" if lacks_package else WAY_OUT
    return ValueError(f"clip.model {str(folder)!r}: {what} cannot be read ({reason}); {way_out}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' report of keys and its progress bar: missing weights raise an error here."""
    from transformers.utils import logging

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def _embeddings(found: Tensor | object) -> Tensor:
    """The embeddings: transformers 4 returns them as a tensor, 5 inside an output object."""
    return found if isinstance(found, Tensor) else found.pooler_output
