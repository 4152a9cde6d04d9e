"""Reads CLIP weights from a file, and finds out which activation and preprocessing they need.

A state dict is the same for GELU and OpenAI's QuickGELU, and open_clip 3.3 uses GELU for every file. Here
something must decide: the file's hash, its layout, a configuration next to it, the model's name, or the user.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dalle_ppo.base.archives import check_unpacked
from dalle_ppo.base.one_line import one_line
from dalle_ppo.models.clip_config import read_clip_config
from dalle_ppo.models.torchscript_weights import read_torchscript

CONFIG_FILE = "open_clip_config.json"
# OpenAI's archives keep these among the weights.
OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
CONTAINERS = ("state_dict", "model_state_dict", "model")
SHORTEST_HASH = 8  # digits of a hash in the names of open_clip's files
PREPROCESSING = ("mean", "std", "interpolation")


@dataclass(frozen=True)
class WeightFile:
    """A weight file, read as far as needed.

    weights: its tensors if open_clip cannot read the file itself, else None.
    is_openai: whether it has the layout of OpenAI's archives.
    quick_gelu: the activation in a TorchScript archive's code; None in other files.
    """

    path: Path
    weights: dict[str, Tensor] | None
    is_openai: bool = False
    quick_gelu: bool | None = None


def load_weight_file(name: str, path: Path, quick_gelu: bool | None) -> tuple[nn.Module, str, dict]:
    """Loads weights into open_clip's model `name`.

    Args:
        name: open_clip's name for the model.
        path: TorchScript archive, state dict, training checkpoint or safetensors file.
        quick_gelu: the user's setting; None if it is not set.

    Returns:
        The model; open_clip's tag for the weights if their hash is known, else the path; preprocessing.

    Raises:
        ValueError: it cannot be read, or its activation or preprocessing cannot be determined.
    """
    import open_clip

    file = read_weight_file(path)
    tag, facts = known_tag(name, path)
    beside = _config_beside(path)
    activation = choose_activation(name, file, facts, beside, quick_gelu)
    preprocess = choose_preprocessing(name, file, facts or beside.get("preprocess_cfg"), activation)
    if file.weights is None:
        model = open_clip.create_model(
            name, pretrained=str(path), require_pretrained=True, quick_gelu=activation
        )
    else:
        model = _plain_clip(name, path, activation)
        model.load_state_dict(file.weights)
    return model, tag or str(path), preprocess


def read_weight_file(path: Path) -> WeightFile:
    """Reads a weight file without running any code in it.

    Raises:
        ValueError: it holds objects other than tensors, or no weights.
    """
    if path.suffix in (".npz", ".npy"):
        return WeightFile(path, None)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if _is_torchscript(path):
        weights = read_torchscript(path)
        return WeightFile(path, _without_openai_keys(weights), True, _activation_in_code(path))
    try:
        # open_clip opens the file again; with mmap, memory holds only one copy.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file can make its reader fail anywhere
        raise ValueError(_how_to_strip(path, str(error))) from None
    container = next((key for key in CONTAINERS if isinstance(_entry(state, key), dict)), None)
    weights = state[container] if container else state
    if not isinstance(weights, dict) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"clip.pretrained {path} holds no weights: neither a state dict nor a checkpoint")
    prefix = "module."
    weights = {str(key).removeprefix(prefix): value for key, value in weights.items()}
    is_openai = any(key in weights for key in OPENAI_KEYS)
    if is_openai or container not in (None, CONTAINERS[0]):
        return WeightFile(path, _without_openai_keys(weights), is_openai)
    return WeightFile(path, None)


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not any(key in names for key in OPENAI_KEYS):
                return WeightFile(path, None)
            return WeightFile(path, _without_openai_keys({key: file.get_tensor(key) for key in names}), True)
    except SafetensorError as error:
        raise ValueError(f"clip.pretrained {path}: not a safetensors file ({one_line(error)})") from None


def known_tag(name: str, path: Path) -> tuple[str | None, dict]:
    """open_clip's tag if the file's hash is that of published weights, and what it knows about them."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    for tag, facts in _published(name).items():
        *_, folder, last = ["", *facts.get("url", "").split("/")]
        for known in (folder, last.partition(".")[0].rpartition("-")[2]):
            if len(known) >= SHORTEST_HASH and sha256.startswith(known):
                return tag, facts
    return None, {}


def choose_activation(name: str, file: WeightFile, facts: dict, beside: dict, said: bool | None) -> bool:
    """Whether the weights need QuickGELU.

    Args:
        name: open_clip's name for the model.
        file: the weights.
        facts: what open_clip knows about the file if its hash is known, else empty.
        beside: the open_clip_config.json in the file's folder; empty if there is none.
        said: the user's setting.

    Raises:
        ValueError: nothing decides it, or the user's setting contradicts what does.
    """
    import open_clip

    named = open_clip.get_model_config(name).get("quick_gelu")
    tellers = (
        (facts.get("quick_gelu", False) if facts else None, "the hash, which open_clip knows,"),
        (file.quick_gelu, "the archive's code"),
        (True if file.is_openai else None, "OpenAI's layout"),
        (bool(beside["model_cfg"].get("quick_gelu")) if beside else None, f"{CONFIG_FILE} next to it"),
        (named, f"the name {name}"),
    )
    for told, by_what in tellers:
        if told is not None:
            refuse_activation(said, told, f"{by_what} of {file.path}")
            return told
    if said is not None:
        return said
    if any(facts.get("quick_gelu") for facts in _published(name).values()):
        raise ValueError(
            f"clip.pretrained {file.path}: weights of {name} may need GELU or QuickGELU, and the file does "
            "not say which; set clip.quick_gelu to true for weights that began as OpenAI's, DFN's or "
            "MetaCLIP's, to false for LAION's or DataComp's"
        )
    return False


def refuse_activation(said: bool | None, told: bool, by_what: str) -> None:
    """Refuses a setting that contradicts what is known.

    Raises:
        ValueError: they contradict each other.
    """
    if said is not None and said != told:
        words = {True: "QuickGELU", False: "GELU"}
        raise ValueError(
            f"clip.quick_gelu is {str(said).lower()}, but {by_what} says {words[told]}; leave the setting out"
        )


def choose_preprocessing(name: str, file: WeightFile, known: dict | None, quick_gelu: bool) -> dict:
    """Preprocessing: that known for the file, or that of all published weights of the model.

    Args:
        name: open_clip's name for the model.
        file: the weights.
        known: from the hash or the configuration next to the file; empty or None without either.
        quick_gelu: the activation.

    Returns:
        open_clip's preprocessing; its `resize_mode` is None if published weights differ in that alone.

    Raises:
        ValueError: it is not known, and published weights of the model differ in colours or interpolation.
    """
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    if known:
        return merge_preprocess_dict(PreprocessCfg(), known)
    same = [facts for facts in _published(name).values() if facts.get("quick_gelu", False) == quick_gelu]
    found = {tuple((key, facts[key]) for key in PREPROCESSING) for facts in same}
    if file.is_openai or not found:
        return merge_preprocess_dict(PreprocessCfg(), {})
    if len(found) > 1:
        raise ValueError(
            f"clip.pretrained {file.path}: published weights of {name} differ in the mean of their images, "
            f"and the file does not say which; put its {CONFIG_FILE} with a preprocess_cfg next to it"
        )
    # How images become square matters to few; it is refused only where somebody asks.
    modes = {facts["resize_mode"] for facts in same}
    mode = modes.pop() if len(modes) == 1 else None
    return merge_preprocess_dict(PreprocessCfg(), dict(found.pop())) | {"resize_mode": mode}


def _published(name: str) -> dict[str, dict]:
    """What open_clip knows about published weights of a model and of its -quickgelu twin, by tag."""
    import open_clip

    plain = name.removesuffix("-quickgelu")
    names = (plain, f"{plain}-quickgelu")
    pairs = [(other, tag) for other, tag in open_clip.list_pretrained() if other in names]
    return {tag: open_clip.get_pretrained_cfg(other, tag) for other, tag in pairs}


def _config_beside(path: Path) -> dict:
    """open_clip's configuration in the file's folder, as in downloads from the hub; {} without one."""
    config = path.parent / CONFIG_FILE
    return read_clip_config(config) if config.is_file() else {}


def _plain_clip(name: str, path: Path, quick_gelu: bool) -> nn.Module:
    import open_clip

    config = open_clip.get_model_config(name)
    if set(config) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}:
        raise ValueError(
            f"clip.pretrained {path} has the layout of OpenAI's CLIP, which {name} is not; give the "
            "clip.model that it belongs to, or a plain state dict"
        )
    return open_clip.CLIP(**config | {"quick_gelu": quick_gelu})


def _without_openai_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if key not in OPENAI_KEYS}


def _entry(state: object, key: str) -> object:
    return state.get(key) if isinstance(state, dict) else None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _activation_in_code(path: Path) -> bool | None:
    """Whether a TorchScript archive computes QuickGELU; None if its code holds neither."""
    with zipfile.ZipFile(path) as archive:
        check_unpacked(archive, path)
        code = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".py"))
    if b"torch.gelu(" in code:
        return False
    return True if b"torch.sigmoid(" in code else None


def _how_to_strip(path: Path, reason: str) -> str:
    """One line: why safe loading refuses a file, and the command that saves only its weights."""
    named = re.search(r"GLOBAL (\S+) was not an allowed", reason)
    if not named:
        return f"clip.pretrained {path} is damaged, or not a PyTorch file; download it again"
    try:
        found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, pickle.UnpicklingError):  # the format before PyTorch 1.6
        found = [named[1]]
    only_options = found == ["argparse.Namespace"]
    load = f"torch.load({str(path)!r}, map_location='cpu', weights_only={only_options})"
    allow = "torch.serialization.add_safe_globals([argparse.Namespace]); " if only_options else ""
    out = str(path.with_name(f"{path.stem}.weights{path.suffix}"))
    command = (
        f"import argparse, torch; {allow}c = {load}; "
        f"c = c.get('state_dict', c) if isinstance(c, dict) else c.state_dict(); torch.save(c, {out!r})"
    )
    trust = "" if only_options else "if you trust the file, whose code this runs, "
    return (
        f"clip.pretrained {path} holds more than tensors ({', '.join(found)}), which safe "
        f'loading refuses; {trust}save only the weights with python -c "{command}" and give that file'
    )
