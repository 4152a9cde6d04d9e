"""Loads a model from a path: the built-in world, published DALL·E weights, an export, or a run."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from dalle_ppo.base.one_line import one_line
from dalle_ppo.config.command_line import load_config
from dalle_ppo.config.model import ModelConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.world import WEIGHTS, World
from dalle_ppo.models.dalle.adapted import merged_decoder
from dalle_ppo.models.dalle.bart import frozen_decoder
from dalle_ppo.models.dalle.family import DalleFamily, FrozenParts
from dalle_ppo.models.dalle.weight_files import PUBLISHED, WeightFiles, download, find_weight_files
from dalle_ppo.models.dalle.weights import load_published
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.runs.checkpoints import ADAPTER_CONFIG, Checkpoint, latest_checkpoint, load_checkpoint
from dalle_ppo.runs.places import POLICY_GROUPS, refuse_wrong_path
from dalle_ppo.runs.provenance import check_reference, weights_sha256

# Default sampling settings of published weights: those of the min-dalle package, except for the start token,
# which is the one they were trained with (the package feeds 16383).
PUBLISHED_SETTINGS = PolicySettings(guidance=16.0, temperature=1.0, top_k=256)


@dataclass(frozen=True)
class LoadedModel:
    """A model loaded from a path.

    Args:
        decoder: the policy.
        reference: the untouched decoder it was trained from; the same object for an untrained model.
        parts: tokenizer, text encoder and VQGAN.
        settings: sampling settings (guidance, temperature, ...) of a run's policy, an export or published
            weights; None for the built-in world's model.
        world: the built-in world it belongs to; None for DALL·E mini and Mega.
        files: weight files of DALL·E mini or Mega, its own or those it was trained from; else None.
        iteration: iteration of the run's checkpoint; None for an untrained model.
    """

    decoder: nn.Module
    reference: nn.Module
    parts: FrozenParts
    settings: PolicySettings | None
    world: World | None
    files: WeightFiles | None = None
    iteration: int | None = None

    def family(self, settings: PolicySettings | None = None) -> PolicyFamily:
        """Draws and scores with this model, with its own settings unless others are given."""
        return DalleFamily(self.parts, settings or self.settings or PolicySettings())


def choose_device(name: str) -> torch.device:
    """The device that a setting names; "auto" is CUDA if available.

    Raises:
        ValueError: if the name is invalid, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name}, but this machine has no CUDA; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name}, but this machine has {torch.cuda.device_count()} GPUs (from 0)")
    return device


def is_run(path: str) -> bool:
    return (Path(path) / "config.yaml").is_file()


def check_start(path: str, run_dir: Path) -> None:
    """Refuses a run that would start from itself.

    Args:
        path: `model.path`.
        run_dir: the run's folder.

    Raises:
        ValueError: `path` is that folder, or a run that started from it.
    """
    start = path
    while is_run(start):
        if Path(start).resolve() == run_dir.resolve():
            raise ValueError(
                f"model.path is {path}, which needs {run_dir}, the run's own folder; name another run_dir, "
                "or continue with --resume and the run's own model.path"
            )
        start = load_config(Path(start) / "config.yaml").model.path


def find_world(path: str) -> World | None:
    """The built-in world that a model path belongs to: the shipped one, one built again, or None.

    Raises:
        ValueError: if the path does not name a model, or the weights are incomplete.
    """
    if path == "builtin":
        return World(WEIGHTS)
    if (Path(path) / "bart_decoder.safetensors").is_file():
        return World(Path(path))
    if is_run(path):
        return find_world(load_config(Path(path) / "config.yaml").model.path)
    if path in PUBLISHED or find_weight_files(path):
        return None
    refuse_wrong_path(path, "model", "{}, whose newest checkpoint is loaded")
    raise ValueError(
        f"model {path!r} is neither builtin, mini nor mega, nor the folder of a run (with config.yaml), of a "
        "built world (with bart_decoder.safetensors) or of DALL·E weights (with encoder and decoder)"
    )


def load_model(
    path: str, device: torch.device, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Loads a model.

    Args:
        path: "builtin", "mini" or "mega" (from the hub), a folder of their weights, a world's folder, or a
            run's folder, of which the newest checkpoint is loaded.
        device: device to load it to.
        revision: commit of the hub's repository, for "mini" and "mega".
        dtype: data type of encoder and decoder; training needs float32.

    Raises:
        ValueError: if there is no model, it does not fit, or the run has no checkpoint yet.
    """
    world = find_world(path)
    if is_run(path):
        return _load_run(path, device, dtype)
    if world is not None:
        parts = FrozenParts(
            world.tokenizer(), world.bart_encoder().to(device, dtype), world.vqgan_decoder().to(device)
        )
        decoder = world.bart_decoder().to(device, dtype)
        return LoadedModel(decoder, decoder, parts, None, world)
    files = download(path, revision) if path in PUBLISHED else find_weight_files(path)
    model = load_published(files, device, dtype)
    parts = FrozenParts(model.tokenizer, model.encoder, model.vqgan)
    return LoadedModel(model.decoder, model.decoder, parts, _saved_settings(files), None, files)


def _load_run(run: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    folder = latest_checkpoint(run, *POLICY_GROUPS)
    if folder is None:
        raise ValueError(f"{run} has no complete checkpoint; train it first, or continue it with --resume")
    start: ModelConfig = load_config(Path(run) / "config.yaml").model
    base = load_model(start.path, device, start.revision, dtype)
    checkpoint = load_checkpoint(folder, *POLICY_GROUPS)
    if dtype == torch.float32:
        check_reference(checkpoint.state, weights_sha256(base.decoder), start.path)
    decoder = policy_like(base.decoder, checkpoint)
    settings = PolicySettings(**checkpoint.state["policy_settings"])
    return LoadedModel(
        decoder, base.decoder, base.parts, settings, base.world, base.files, checkpoint.iteration
    )


def policy_like(decoder: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """A checkpoint's policy, frozen, with the dtypes and the device of `decoder`, its reference.

    Raises:
        ValueError: it has adapters, and peft is missing.
    """
    if ADAPTER_CONFIG in checkpoint.state:
        return merged_decoder(decoder, checkpoint.tensors["adapter_model"], checkpoint.state[ADAPTER_CONFIG])
    kinds, tensors = decoder.state_dict(), checkpoint.tensors["policy"]
    weights = {name: tensor.to(kinds.get(name, tensor)) for name, tensor in tensors.items()}
    return frozen_decoder(decoder.config, weights)


def _saved_settings(files: WeightFiles) -> PolicySettings:
    """The settings of an exported policy, or `PUBLISHED_SETTINGS` for published weights."""
    if files.settings is None:
        return PUBLISHED_SETTINGS
    try:
        return PolicySettings(**json.loads(files.settings.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{files.settings}: not valid policy settings ({one_line(error)}); export the run again"
        ) from None


def pinned(config: Config, files: WeightFiles | None) -> Config:
    """The settings, with `model.revision` set to the commit of the hub's weights.

    A branch may move, but resuming, evaluating or exporting the run later or elsewhere needs the same
    weights.
    """
    if config.model.path not in PUBLISHED or files is None:
        return config
    return replace(config, model=replace(config.model, revision=files.commit))
