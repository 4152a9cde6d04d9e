"""From a store to a reward model's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.models.heads.nsfw import save_head
from dalle_ppo.models.heads.preference import OUTPUT, PreferenceHead
from dalle_ppo.models.heads.probes import probe_images
from dalle_ppo.preferences.reward_model.data import Rankings, as_ranking, embed, find_answers, split
from dalle_ppo.preferences.reward_model.network import Ensemble, FitSettings, fit
from dalle_ppo.preferences.reward_model.quality import (
    Accuracy,
    accuracy,
    accuracy_of,
    calibration,
    learning_curve,
    margins,
    outlook,
    slope_of,
)
from dalle_ppo.preferences.reward_model.report import Report, write_report
from dalle_ppo.preferences.store import Answer, Store


@dataclass(frozen=True)
class Learned:
    """A fitted ensemble, and what is needed to save it.

    Args:
        ensemble: fitted.
        slope: of its calibration.
        parts: the rankings it was fitted with.
    """

    ensemble: Ensemble
    slope: float
    parts: dict[str, Rankings]


def learn(parts: dict[str, Rankings], settings: FitSettings) -> Learned:
    """Fits and calibrates an ensemble."""
    ensemble = fit(parts, settings)
    return Learned(ensemble, slope_of(margins(ensemble, parts["validation"])[0]), parts)


def train_reward_model(
    store: Store, out: Path, clip: ClipScorer, settings: FitSettings, with_curve: bool = True
) -> Report:
    """Learns from all answers of a store, and writes the model, OUT.json and OUT.png.

    Args:
        store: answers and pictures.
        out: the `.safetensors` file.
        clip: a frozen CLIP; the model belongs to it.
        settings: how to fit.
        with_curve: also fit on parts of the answers, for the learning curve; takes most of the time.

    Raises:
        ValueError: there is nothing, or too little, to learn from.
    """
    found = find_answers(store)
    rankings, notes = embed(store, found.answers, clip)
    learned = learn(split(rankings), settings)
    save_reward_model(out, learned, clip, found.sha256)  # what follows only tells how good it is
    print(f"wrote {out}; measuring how good it is", flush=True)
    parts = learned.parts
    curve = learning_curve(parts, settings) if with_curve else []
    report = Report(
        answers={name: len(part) for name, part in parts.items()},
        raters=found.raters,
        accuracy=accuracy(learned.ensemble, parts["test"]),
        slope=learned.slope,
        calibration=calibration(learned.slope * margins(learned.ensemble, parts["test"])[0]),
        curve=curve,
        outlook=outlook(curve),
        notes=[*found.notes, *notes],
        data_sha256=found.sha256,
        settings=settings,
    )
    write_report(out, report)
    return report


def save_reward_model(out: Path, learned: Learned, clip: ClipScorer, data_sha256: str) -> None:
    """Writes the file that `load_preference` reads; it is bound to the CLIP by probes, as detectors are."""
    rankings, probes = learned.parts["fit"], clip.embed_images(probe_images())
    with torch.no_grad():
        used = rankings.index[rankings.ranks > 0].unique()
        # Scores have no natural zero: without this, members would differ by a constant that means nothing.
        centre = learned.ensemble(rankings.features[used]).mean(dim=0)
    info = HeadInfo(
        clip_model=clip.name,
        clip_pretrained=clip.pretrained,
        dimension=probes.shape[1],
        output=OUTPUT,
        source="preferences",
        source_sha256=data_sha256,
    )
    save_head(out, learned.ensemble.layers(learned.slope, centre), info, probes)


def accuracy_on(head: PreferenceHead, store: Store, answers: list[Answer], clip: ClipScorer) -> Accuracy:
    """How often a finished model agrees with answers that it has not learned from.

    Args:
        head: of this CLIP.
        store: has the pictures.
        answers: as they stand in the store; reduced to rankings as for learning.
        clip: the head's CLIP.

    Raises:
        ValueError: the answers decide no pair, or no picture can be read.
    """
    rankings, _ = embed(store, [given for given in map(as_ranking, answers) if given is not None], clip)
    winner, loser, ranking = rankings.pairs()
    if not len(winner):
        raise ValueError(f"{len(answers)} answers hold no decided pair, only ties; label more sets")
    with torch.no_grad():
        scores = head.layers(rankings.features.to(clip.device)).mean(dim=1).double().cpu().numpy()
    return accuracy_of(scores[winner] - scores[loser], [rankings.captions[i] for i in ranking])
