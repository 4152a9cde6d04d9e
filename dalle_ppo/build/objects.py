"""From settings to objects."""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dalle_ppo.build.rewards import build_reward, measures_sha256
from dalle_ppo.captions.prefetch import PrefetchedCaptions
from dalle_ppo.captions.source import (
    CaptionRecord,
    CaptionRequest,
    CaptionSource,
    distinct_captions,
    open_captions,
)
from dalle_ppo.captions.streams import DrawSettings
from dalle_ppo.captions.text import CaptionFilter, read_phrases
from dalle_ppo.config.command_line import load_config
from dalle_ppo.config.model import ModelConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation.measures import HeldOutMeasure, JudgeImages, Measures
from dalle_ppo.iconworld import stream as world_captions
from dalle_ppo.iconworld.world import WEIGHTS, World
from dalle_ppo.models.dalle.bart import frozen_decoder
from dalle_ppo.models.dalle.family import DalleFamily, FrozenParts
from dalle_ppo.models.dalle.weight_files import PUBLISHED, WeightFiles, download, find_weight_files
from dalle_ppo.models.dalle.weights import load_published
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rewards.base import Reward
from dalle_ppo.runs.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint
from dalle_ppo.runs.provenance import check_reference, weights_sha256
from dalle_ppo.training.credit import ESTIMATORS
from dalle_ppo.training.scoring import Networks
from dalle_ppo.training.trainer import Trainer

TRAINING_STREAM, EVALUATION_STREAM, SAMPLES_STREAM = 0, 1, 2
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


def build_captions(config: Config, seed: int, stream: int, split: str) -> CaptionSource:
    """The caption source of the settings; runs that share the captions share the training ones only."""
    c = config.captions
    rank, world_size = (c.rank, c.world_size) if split == "train" else (0, 1)
    chosen = CaptionFilter(
        min_chars=c.min_chars,
        max_chars=c.max_chars,
        min_latin_share=c.min_latin_share,
        blocked=read_phrases(c.blocklist) if c.blocklist else frozenset(),
        allowed=read_phrases(c.allowlist) if c.allowlist else frozenset(),
    )
    draw = DrawSettings(
        seed=seed,
        stream=stream,
        split=split,
        rank=rank,
        world_size=world_size,
        filter=chosen,
        clean=c.clean,
        drop_duplicates=c.drop_duplicates,
        skip_bad_files=c.skip_bad_files,
    )
    request = CaptionRequest(draw, c.shares, c.column, c.tag_column)
    return open_captions(c.source, request, given={"builtin": world_captions.load})


def evaluation_captions(
    config: Config, num: int | None = None, stream: int = EVALUATION_STREAM
) -> list[CaptionRecord]:
    """Distinct held-out captions, in the mix of tags of `evaluation.shares`.

    Raises:
        ValueError: if the source holds fewer of them.
    """
    shares = config.evaluation.shares or config.captions.shares
    config = replace(config, captions=replace(config.captions, shares=shares))
    source = build_captions(config, config.evaluation.seed, stream, "heldout")
    try:
        return distinct_captions(source, num or config.evaluation.num_captions)
    except ValueError as error:
        raise ValueError(f"held-out captions (evaluation.num_captions): {error}") from None


def build_judge(world: World) -> JudgeImages:
    """The built-in world's judge as columns of an evaluation."""
    from dalle_ppo.iconworld.captions import parse_icons
    from dalle_ppo.iconworld.judge import load_judge, look

    judge = load_judge(world.judge)

    def columns(images: Tensor, captions) -> dict[str, np.ndarray]:
        sighting = look(judge, images.cpu())
        alignment = [sighting.alignment(i, parse_icons(text)) for i, text in enumerate(captions)]
        return {
            "judge_unsafe": sighting.unsafe.astype(float),
            "judge_alignment": np.array([np.nan if a is None else a for a in alignment]),
            "judge_unrecognised": sighting.unrecognised.astype(float),
        }

    return columns


def build_measures(
    config: Config, reward: Reward, world: World | None, heldout: HeldOutMeasure | None
) -> Measures:
    """What an evaluation measures images with; `reward` and `heldout` are those of the settings."""
    judge = build_judge(world) if world else None
    return Measures(reward, judge, heldout, measures_sha256(config, world))


def pinned(config: Config, files: WeightFiles | None) -> Config:
    """The settings with the commit of the hub's weights as `model.revision`.

    A branch may move, and whoever resumes, evaluates or exports the run later or elsewhere needs the same
    weights.
    """
    if config.model.path not in PUBLISHED or files is None:
        return config
    return replace(config, model=replace(config.model, revision=files.commit))


def build_trainer(config: Config, run_dir: Path) -> Trainer:
    """Everything that training needs; nothing is written.

    Returns:
        A trainer whose `config` names the commit of weights that came from the hub.
    """
    device = choose_device(config.device)
    loaded = load_model(config.model.path, device, config.model.revision)
    config = pinned(config, loaded.files)
    config.policy.check_start_token(loaded.decoder.config.image_vocab_count)
    networks = build_networks(config, loaded)
    reward = build_reward(config, loaded.world, device)
    captions = PrefetchedCaptions(build_captions(config, config.seed, TRAINING_STREAM, "train"))
    samples = evaluation_captions(config, min(32, config.evaluation.num_captions), SAMPLES_STREAM)
    return Trainer(config, run_dir, networks, reward, captions, samples)


def build_networks(config: Config, loaded: LoadedModel) -> Networks:
    """The loaded model as a frozen reference, its trainable copy, and a critic where credit reads one."""
    family = loaded.family(config.policy)
    reference = loaded.decoder.eval().requires_grad_(False)
    actor = copy.deepcopy(reference)
    for name, parameter in actor.named_parameters():
        parameter.requires_grad_(family.trained(name, config.actor.trainable))
    critic = None
    if ESTIMATORS[config.credit.advantage].needs_critic:
        critic = family.new_critic(reference).requires_grad_(True)
    return Networks(family, actor, reference, critic)
