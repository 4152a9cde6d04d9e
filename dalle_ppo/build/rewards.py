"""Builds the reward from settings, and hashes the files that images are measured with."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dalle_ppo import rewards
from dalle_ppo.config.settings import ClipConfig, Config
from dalle_ppo.config.term import TermConfig
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.heads.keras.download import detector_file
from dalle_ppo.rewards.base import Term
from dalle_ppo.rewards.calling import import_function
from dalle_ppo.rewards.combine import CombinedReward
from dalle_ppo.rewards.shared import Shared
from dalle_ppo.runs.provenance import path_sha256

BUILTIN = "builtin"


def build_reward(
    config: Config,
    world: World | None,
    device: torch.device,
    dtype: str = "float32",
    judge: TermConfig | None = None,
) -> CombinedReward:
    """The reward of the settings; loads only what its terms need.

    Args:
        config: all settings.
        world: the built-in world that the model belongs to, if any.
        device: where the terms run.
        dtype: of the matrices of the run's CLIP; training passes `model.frozen_dtype`.
        judge: the only term instead of the reward's. It sees the images of evaluations alone.

    Raises:
        ValueError: a term cannot be loaded, or belongs to the built-in world but the model does not.
    """
    terms = config.reward.parsed if judge is None else [judge]
    _check_builtin(config, terms, world)
    # Imported first, so that errors in the user's own code show before CLIP is loaded.
    loaders = [_find_loader(term) for term in terms]
    open_clip = partial(load_run_clip, config.clip, world, device, dtype) if _reads_clip(terms) else None
    shared = Shared(open_clip, lambda name: _detector_file(name, world), device)
    drawing = ["rollout", "evaluation"] if config.evaluation.at_end else ["rollout"]
    drawn = {
        section: getattr(config, section).samples_per_caption
        for section in (drawing if judge is None else ["evaluation"])
    }
    return CombinedReward(
        [_load_term(term, load, drawn, shared) for term, load in zip(terms, loaders, strict=True)], shared
    )


def _load_term(term: TermConfig, load: Callable, drawn: dict[str, int], shared: Shared) -> Term:
    """A term, ready to be called; a function of the user's own says itself how many images it needs.

    Args:
        term: its settings.
        load: returns its function.
        drawn: images of each caption in every section whose images it sees.
        shared: what terms share.

    Raises:
        ValueError: it cannot be loaded, or needs more images of each caption.
    """
    function = load(term.own, shared)
    needed = max(term.own.images_needed(False), getattr(function, "images_per_caption", 1))
    for section, samples in drawn.items():
        if samples < needed:
            raise ValueError(
                f"{section}.samples_per_caption is {samples}, but the reward term {term.label} compares the "
                f"images of a caption; set it to at least {needed}"
            )
    return Term(term.label, function, term.parts, term.common.weight, term.gate, needed)


def measures_sha256(config: Config, world: World | None, judge: TermConfig | None = None) -> dict[str, str]:
    """Hashes of the files that images are measured with, by name; weights named by a tag have none.

    Args:
        config: all settings.
        world: the built-in world that the model belongs to, if any.
        judge: the only term instead of the reward's.
    """
    clip, terms, e = config.clip, config.reward.parsed if judge is None else [judge], config.evaluation
    files = {
        "clip": None,
        "judge": world.judge if world else None,
        "heldout_clip": clip_files(e.heldout_clip) if e.heldout_clip else None,
        "heldout_detector": detector_file(e.heldout_detector) if e.heldout_detector else None,
    }
    if _reads_clip(terms):
        files["clip"] = world.clip if clip.model == BUILTIN else clip_files(clip)
    for term in terms:
        if term.own.own_clip is not None:
            files[f"{term.label}.model"] = clip_files(term.own.own_clip)
        for setting in term.own.detectors:
            name = setting if setting not in files else f"{term.label}.{setting}"
            files[name] = _detector_file(getattr(term.own, setting), world)
    return {name: path_sha256(path) for name, path in files.items() if path is not None}


def clip_files(clip: ClipConfig) -> Path | None:
    """The folder or weight file that a CLIP's settings name; None if open_clip fetches weights by tag."""
    paths = [Path(name) for name in (clip.model, clip.pretrained) if name]
    return next((path for path in paths if path.exists()), None)


def _reads_clip(terms: list[TermConfig]) -> bool:
    return any(term.own.reads_clip for term in terms)


def _check_builtin(config: Config, terms: list[TermConfig], world: World | None) -> None:
    """Refuses to measure another model's pictures with the built-in world's CLIP or detectors."""
    if world is not None:
        return
    found = ["clip.model"] if _reads_clip(terms) and config.clip.model == BUILTIN else []
    found += [
        f"{setting} of reward term {term.label}"
        for term in terms
        for setting in term.own.detectors
        if getattr(term.own, setting) == BUILTIN
    ]
    if found:
        raise ValueError(
            f"{' and '.join(found)}: builtin, which knows the built-in world's pictures only. With "
            f"model.path {config.model.path} give clip.model and clip.pretrained, and as detector laion-l14, "
            "laion-b32 or a file written by converters/keras_nsfw_to_torch.py"
        )


def _find_loader(term: TermConfig) -> Callable:
    """`load(options, shared)` of a term's module, or a loader that returns the user's function."""
    if term.is_function:
        function = import_function(term.name)
        return lambda options, shared: function
    return importlib.import_module(f"{rewards.__name__}.{term.name}").load


def load_run_clip(
    clip: ClipConfig, world: World | None, device: torch.device, dtype: str = "float32"
) -> ClipScorer:
    """The CLIP of the settings.

    Raises:
        ValueError: it is the built-in world's, to which the model does not belong, or cannot be loaded.
    """
    builtin = clip.model == BUILTIN
    if builtin and world is None:
        raise ValueError("clip.model is builtin, which knows the built-in world's pictures only; name a CLIP")
    model = str(world.clip) if builtin else clip.model
    loaded = load_clip(model, clip.pretrained, device, clip.quick_gelu, clip.same_as)
    return loaded if dtype == "float32" else loaded.narrowed(getattr(torch, dtype))


def _detector_file(name: str, world: World | None) -> Path:
    return world.detector if name == BUILTIN else detector_file(name)
