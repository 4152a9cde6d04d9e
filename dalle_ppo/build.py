"""From settings to objects."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .caption_streams import DrawSettings
from .captions import CaptionRecord, CaptionSource, distinct_captions, open_captions
from .config import Config, load_config
from .evaluation import JudgeImages, Measures
from .iconworld.world import WEIGHTS, World
from .models.bart import BartDecoder
from .models.critic import Critic
from .models.policy import PolicySettings
from .rewards.base import Reward
from .rewards.clip import ClipScorer, load_clip
from .rewards.combine import DefaultReward, Thresholds, import_reward, weighted_sum
from .rewards.nsfw import load_detector
from .rollout import FrozenParts
from .run_state import latest_checkpoint, load_checkpoint
from .trainer import Trainer

TRAINING_STREAM, EVALUATION_STREAM, SAMPLES_STREAM = 0, 1, 2


@dataclass(frozen=True)
class LoadedModel:
    """A model as a path names it.

    Args:
        decoder: the policy.
        reference: the untouched decoder it was trained from; the same object for an untrained model.
        parts: tokenizer, text encoder and VQGAN.
        settings: guidance, temperature and so on, where the model is a run's policy; else None.
        world: the built-in world it belongs to.
        iteration: of the run's checkpoint; None for an untrained model.
    """

    decoder: BartDecoder
    reference: BartDecoder
    parts: FrozenParts
    settings: PolicySettings | None
    world: World
    iteration: int | None = None


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
        raise ValueError(f"device is {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name}, but this machine has no CUDA; use --device cpu")
    return device


def find_world(path: str) -> World:
    """The built-in world that a model path belongs to: the shipped one, or one that was built anew."""
    if path == "builtin":
        return World(WEIGHTS)
    if (Path(path) / "bart_decoder.safetensors").is_file():
        return World(Path(path))
    if (Path(path) / "config.yaml").is_file():
        return find_world(load_config(Path(path) / "config.yaml").model.path)
    raise ValueError(
        f"model {path!r} is neither builtin, nor a run's folder (with config.yaml), nor a built world's "
        "(with bart_decoder.safetensors)"
    )


def load_model(path: str, device: torch.device) -> LoadedModel:
    """Loads "builtin", a world's folder, or the newest checkpoint of a run.

    Raises:
        ValueError: if there is no model, or the run has no checkpoint yet.
    """
    world = find_world(path)
    if not (Path(path) / "config.yaml").is_file():
        parts = FrozenParts(
            world.tokenizer(), world.bart_encoder().to(device), world.vqgan_decoder().to(device)
        )
        decoder = world.bart_decoder().to(device)
        return LoadedModel(decoder, decoder, parts, None, world)
    folder = latest_checkpoint(path)
    if folder is None:
        raise ValueError(f"{path} has no complete checkpoint; train it first, or go on with --resume")
    checkpoint = load_checkpoint(folder)
    base = load_model(load_config(Path(path) / "config.yaml").model.path, device)
    decoder = copy.deepcopy(base.decoder)
    decoder.load_state_dict(checkpoint.tensors["policy"])
    settings = PolicySettings(**checkpoint.state["policy_settings"])
    return LoadedModel(decoder, base.decoder, base.parts, settings, world, checkpoint.iteration)


def build_reward(config: Config, world: World, device: torch.device) -> tuple[Reward, ClipScorer]:
    """The reward of the settings, and the CLIP it stands on."""
    builtin = config.clip.model == "builtin"
    clip = load_clip(str(world.clip) if builtin else config.clip.model, config.clip.pretrained, device)
    path = world.detector if config.reward.detector == "builtin" else config.reward.detector
    detector = load_detector(path).to(device)
    names = Thresholds.__dataclass_fields__
    thresholds = Thresholds(**{name: getattr(config.reward, name) for name in names})
    rewards = [("default", 1.0, DefaultReward(clip, detector, thresholds))]
    rewards += [(extra.call, extra.weight, import_reward(extra.call)) for extra in config.reward.extra]
    return weighted_sum(rewards), clip


def build_captions(config: Config, seed: int, stream: int, split: str) -> CaptionSource:
    """The caption source of the settings."""
    c = config.captions
    column = None if c.source == "builtin" else c.column
    draw = DrawSettings(seed=seed, stream=stream, split=split)
    return open_captions(c.source, draw, c.shares, caption_column=column)


def evaluation_captions(
    config: Config, num: int | None = None, stream: int = EVALUATION_STREAM
) -> list[CaptionRecord]:
    """Distinct held-out captions, in the training's mix of tags.

    Raises:
        ValueError: if the source holds fewer of them.
    """
    source = build_captions(config, config.evaluation.seed, stream, "heldout")
    try:
        return distinct_captions(source, num or config.evaluation.num_captions)
    except ValueError as error:
        raise ValueError(f"held-out captions (evaluation.num_captions): {error}") from None


def build_judge(world: World) -> JudgeImages:
    """The built-in world's judge as columns of an evaluation."""
    from .iconworld.captions import parse_icons
    from .iconworld.judge import load_judge, look

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


def build_measures(config: Config, world: World, device: torch.device) -> Measures:
    """What an evaluation measures images with."""
    reward, clip = build_reward(config, world, device)
    return Measures(reward, clip.embed_images, build_judge(world))


def build_trainer(config: Config, run_dir: Path) -> Trainer:
    """Everything that training needs; nothing is written."""
    device = choose_device(config.device)
    loaded = load_model(config.model.path, device)
    reference = loaded.decoder.eval().requires_grad_(False)
    actor = copy.deepcopy(reference)
    for name, parameter in actor.named_parameters():
        parameter.requires_grad_(config.ppo.trainable == "all" or "encoder_attn" in name)
    critic = Critic(reference).requires_grad_(True) if config.ppo.advantage == "gae" else None
    reward, _ = build_reward(config, loaded.world, device)
    captions = build_captions(config, config.seed, TRAINING_STREAM, "train")
    samples = evaluation_captions(config, min(32, config.evaluation.num_captions), SAMPLES_STREAM)
    return Trainer(config, run_dir, actor, reference, critic, loaded.parts, reward, captions, samples)
