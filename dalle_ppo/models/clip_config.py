"""Checks a CLIP folder's configuration before open_clip acts on it.

open_clip hands `tokenizer_kwargs` to transformers, where `trust_remote_code` runs a Python file of the
folder, and loads whatever model a name in the configuration stands for.
Source: open_clip 3.3.0, factory.py `get_tokenizer`, hf_model.py, timm_model.py.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_BYTES, MAX_NUMBER = 1 << 20, 1 << 20
TOKENIZER_OPTIONS = ("clean", "strip_sep_token", "language", "reduction_mask", "additional_special_tokens")
NAMES = {"hf_model_name": r"[\w-][\w.-]*(/[\w-][\w.-]*)?", "timm_model_name": r"[\w.-]+"}
"""What may stand where open_clip loads a model by name: a name, never a path or an address."""


def read_clip_config(file: Path) -> dict[str, Any]:
    """The content of an `open_clip_config.json`.

    Raises:
        ValueError: it is not such a configuration, or it names code, paths or absurd sizes.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise TypeError(f"{file.stat().st_size} bytes")
        config = json.loads(file.read_text(encoding="utf-8"))
        parts = [
            config["model_cfg"],
            *(config["model_cfg"].get(f"{name}_cfg") or {} for name in ("vision", "text")),
        ]
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError("its sections are not mappings")
        _check_colours(config.get("preprocess_cfg") or {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file}: not open_clip's configuration ({type(error).__name__}: {str(error)[:200]}); download "
            "the folder again"
        ) from None
    for part in parts:
        _check_part(part, file)
    return config


def _check_colours(preprocess: dict[str, Any]) -> None:
    """Mean and standard deviation of the three colours, where they are given."""
    for name in ("mean", "std"):
        values = preprocess.get(name, [1.0] * 3)
        if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
            raise TypeError(f"{name} is {values}, needs 3 numbers")
        if not all(math.isfinite(value) for value in values) or (name == "std" and min(values) <= 0):
            raise ValueError(f"{name} is {values}, which no images have")


def _check_part(part: dict[str, Any], file: Path) -> None:
    for key, value in part.items():
        if key in NAMES and not (isinstance(value, str) and re.fullmatch(NAMES[key], value)):
            raise ValueError(
                f"{file}: {key} is {str(value)[:80]!r}, a path or an address: refused; use a name"
            )
        if key in NAMES and Path(str(value)).exists():
            raise ValueError(f"{file}: {key} is {value!r}, which is also a path here: refused; rename that")
        if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
            raise ValueError(f"{file}: {key} is {value}; no CLIP has more than {MAX_NUMBER}")
    options = part.get("tokenizer_kwargs") or {}
    refused = [key for key in options if key not in TOKENIZER_OPTIONS]
    if refused:
        raise ValueError(
            f"{file}: tokenizer_kwargs sets {refused[0]}, which can run code or read other files: refused; "
            f"it may set {', '.join(TOKENIZER_OPTIONS)}"
        )


def rename_settings(message: str, named: Callable[[str], str]) -> str:
    """A message of `load_clip` for who gives a CLIP otherwise than by the settings `clip.*`.

    Args:
        message: names the settings of the run's CLIP, such as clip.quick_gelu.
        named: what is given instead, for model, pretrained, quick_gelu or same_as.
    """
    setting = r"(?<![\w/.-])clip\.(model|pretrained|quick_gelu|same_as)\b(?!\.\w)"  # not in a path
    return re.sub(setting, lambda found: named(found[1]), message)
