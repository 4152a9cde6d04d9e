"""From a path to a model: the built-in world's, DALL·E's published weights, an export, or a run."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from dalle_ppo.config.command_line import load_config
from dalle_ppo.config.model import ModelConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.world import WEIGHTS, World
from dalle_ppo.models.dalle.bart import frozen_decoder
from dalle_ppo.models.dalle.family import DalleFamily, FrozenParts
from dalle_ppo.models.dalle.weight_files import PUBLISHED, WeightFiles, download, find_weight_files
from dalle_ppo.models.dalle.weights import load_published
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.runs.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint
from dalle_ppo.runs.provenance import check_reference, weights_sha256

# How published weights are drawn from unless told otherwise: the min-dalle package's defaults, but for the
# start token, which is the one they were trained with (the package feeds 16383).
PUBLISHED_SETTINGS = PolicySettings(guidance=16.0, temperature=1.0, top_k=256)


@dataclass(frozen=True)
class LoadedModel:
    """A model as a path names it.

    Args:
        decoder: the policy.
        reference: the untouched decoder it was trained from; the same object for an untrained model.
        parts: tokenizer, text encoder and VQGAN.
        settings: guidance, temperature and so on, of a run's policy, an export or published weights; None
            for the built-in world's model.
        world: the built-in world it belongs to; None for DALL·E mini and Mega.
        files: DALL·E mini's or Mega's weights, its own or those it was trained from; else None.
        iteration: of the run's checkpoint; None for an untrained model.
    """

    decoder: nn.Module
    reference: nn.Module
    parts: FrozenParts
    settings: PolicySettings | None
    world: World | None
    files: WeightFiles | None = None
    iteration: int | None = None

    def family(self, settings: PolicySettings | None = None) -> PolicyFamily:
        """What draws and scores with this model, by its own settings unless others are given."""
        return DalleFamily(self.parts, settings or self.settings or PolicySettings())


def choose_device(name: str) -> torch.device:
    """The device of a setting; "auto" is CUDA where there is one.

    Raises:
        ValueError: if CUDA is asked for where there is none.
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
        raise ValueError(f"device is {name}, but this machine has {torch.cuda.device_count()} GPUs, from 0")
    return device


def is_run(path: str) -> bool:
    return (Path(path) / "config.yaml").is_file()


def check_start(path: str, run_dir: Path) -> None:
    """Refuses a run that would start from itself.

    Args:
        path: `model.path`.
        run_dir: of the run.

    Raises:
        ValueError: `path` is that folder, or a run that began there.
    """
    start = path
    while is_run(start):
        if Path(start).resolve() == run_dir.resolve():
            raise ValueError(
                f"model.path is {path}, which needs {run_dir}, the run's own folder; name another run_dir, "
                "or go on with --resume and the run's own model.path"
            )
        start = load_config(Path(start) / "config.yaml").model.path


def find_world(path: str) -> World | None:
    """The built-in world that a model path belongs to: the shipped one, one that was built anew, or none.

    Raises:
        ValueError: if the path names no model, or weights that are not complete.
    """
    if path == "builtin":
        return World(WEIGHTS)
    if (Path(path) / "bart_decoder.safetensors").is_file():
        return World(Path(path))
    if is_run(path):
        return find_world(load_config(Path(path) / "config.yaml").model.path)
    if path in PUBLISHED or find_weight_files(path):
        return None
    raise ValueError(
        f"model {path!r} is neither builtin, mini nor mega, nor a run's folder (with config.yaml), nor a "
        "built world's (with bart_decoder.safetensors), nor one of DALL·E weights (with encoder and decoder)"
    )


def load_model(
    path: str, device: torch.device, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Loads a model.

    Args:
        path: "builtin", "mini" or "mega" (from the hub), a folder of their weights, a world's folder, or a
            run's: its newest checkpoint.
        device: where it goes.
        revision: of the hub's repository, for "mini" and "mega".
        dtype: of encoder and decoder; training needs float32.

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
    folder = latest_checkpoint(run, "policy")
    if folder is None:
        raise ValueError(f"{run} has no complete checkpoint; train it first, or go on with --resume")
    start: ModelConfig = load_config(Path(run) / "config.yaml").model
    base = load_model(start.path, device, start.revision, dtype)
    checkpoint = load_checkpoint(folder, "policy")
    if dtype == torch.float32:
        check_reference(checkpoint.state, weights_sha256(base.decoder), start.path)
    decoder = policy_like(base.decoder, checkpoint)
    settings = PolicySettings(**checkpoint.state["policy_settings"])
    return LoadedModel(
        decoder, base.decoder, base.parts, settings, base.world, base.files, checkpoint.iteration
    )


def policy_like(decoder: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """A checkpoint's policy, frozen, with the kinds of tensors, and on the device, of `decoder`."""
    kinds, tensors = decoder.state_dict(), checkpoint.tensors["policy"]
    weights = {name: tensor.to(kinds.get(name, tensor)) for name, tensor in tensors.items()}
    return frozen_decoder(decoder.config, weights)


def _saved_settings(files: WeightFiles) -> PolicySettings:
    """Of an exported policy; of published weights, `PUBLISHED_SETTINGS`."""
    if files.settings is None:
        return PUBLISHED_SETTINGS
    try:
        return PolicySettings(**json.loads(files.settings.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{files.settings}: no policy settings ({error}); export the run again") from None


def pinned(config: Config, files: WeightFiles | None) -> Config:
    """The settings with the commit of the hub's weights as `model.revision`.

    A branch may move, and whoever resumes, evaluates or exports the run later or elsewhere needs the same
    weights.
    """
    if config.model.path not in PUBLISHED or files is None:
        return config
    return replace(config, model=replace(config.model, revision=files.commit))
