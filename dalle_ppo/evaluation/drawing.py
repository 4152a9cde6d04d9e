"""Draws, measures and stores the images of a side batch by batch.

Each finished batch is written to disk and kept, so that an interrupted evaluation resumes where it stopped
and a repeated one draws only what has changed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dalle_ppo.base.halving import Halving
from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation.baselines import Baseline, best_of, reject
from dalle_ppo.evaluation.columns import Columns, unknown
from dalle_ppo.evaluation.files import read_batch, write_batch
from dalle_ppo.evaluation.measures import POLICY_COLUMNS, Measures, image_columns, policy_columns
from dalle_ppo.evaluation.statistics import safety_bounds
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.policy.rollout import Means, NoiseSource, collect
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.provenance import weights_sha256


@dataclass(frozen=True)
class Side:
    """One side's images, in the order of captions and samples.

    Args:
        labels: `caption_id`, `caption`, `tag`, `sample` [N].
        columns: numbers [N] by name, `tokens` int32 [N, T] and, if the reward returns them,
            `embeddings` float32 [N, D].
        batches: the folder where they are kept.
    """

    labels: Columns
    columns: Columns
    batches: Path

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The columns with one number per image, as `statistics.summarise` takes them."""
        numbers = {name: values for name, values in self.columns.items() if values.ndim == 1}
        return dict(self.labels) | numbers

    @cached_property
    def diversity(self) -> dict[str, float]:
        """Mean cosine distance between the samples of a caption, by caption id; empty where unknown."""
        n = int(self.labels["sample"].max()) + 1
        if n == 1 or "embeddings" not in self.columns:
            return {}
        embeddings = self.columns["embeddings"].astype(np.float64)
        totals = embeddings.reshape(-1, n, embeddings.shape[1]).sum(axis=1)
        # The squared norm of the sum counts each pair twice and, n times, an embedding with itself.
        distances = 1 - ((totals**2).sum(axis=1) - n) / (n * (n - 1))
        return dict(zip(self.labels["caption_id"][::n], distances.tolist(), strict=True))


@dataclass(frozen=True)
class Setup:
    """What all sides of an evaluation share.

    Args:
        config: the run's settings.
        reference: the decoder that training started from.
        family: how the models draw and score.
        measures: what images are measured with.
        captions: M distinct captions.
        folder: where finished batches are kept, for an evaluation that is interrupted or done again.
        identity: everything besides its weights that determines the numbers of a side; JSON-able.
        team: the processes that share the batches; the first one keeps them.
        between: called by all processes before each batch; it may end the evaluation.
        halving: remembers how many images fit, where memory runs out.
    """

    config: Config
    reference: nn.Module
    family: PolicyFamily
    measures: Measures
    captions: list[CaptionRecord]
    folder: Path
    identity: Mapping[str, object]
    team: Team = ALONE
    between: Callable[[], None] = lambda: None
    halving: Halving = field(default_factory=Halving)

    @property
    def samples(self) -> int:
        return self.config.evaluation.samples_per_caption

    @property
    def captions_at_once(self) -> int:
        return max(1, self.config.evaluation.batch_size // self.samples)

    def collect(
        self,
        decoder: nn.Module,
        captions: list[CaptionRecord],
        samples: int,
        attempt: int = 0,
        remember: bool = False,
        pixels: bool = True,
    ) -> Experience:
        """Draws images; attempt 0 uses the noise that all sides share, other attempts use their own."""
        noise = NoiseSource(self.config.evaluation.seed, "evaluation", attempt)
        memory_gb = self.config.rollout.memory_gb
        weights = self.family.sampler_weights(decoder)
        means = Means(halving=self.halving, remember=remember, pixels=pixels)
        return collect(self.family, weights, captions, samples, noise, memory_gb, means)

    def with_pixels(self, decoder: nn.Module, drawn: Experience) -> Experience:
        """Decodes images that `collect` has drawn without their pixels."""
        if drawn.images is not None:
            return drawn
        memory_gb = self.config.rollout.memory_gb

        def work(size: int) -> Tensor:
            plan = None if memory_gb is None else self.family.plan(decoder, size, memory_gb)
            return torch.cat([self.family.decode(tokens, plan) for tokens in drawn.tokens.split(size)])

        return replace(drawn, images=self.halving.run("drawing", "rollout.memory_gb", len(drawn), work))

    def batch_of(self, side: Side, number: int) -> Columns:
        """The columns of a side's batch, by the batch's number."""
        size = self.captions_at_once * self.samples
        return {key: values[number * size : (number + 1) * size] for key, values in side.columns.items()}


@torch.no_grad()
def draw_side(name: str, decoder: nn.Module, setup: Setup, reference: Side | None = None) -> Side:
    """Draws and measures the images of one model.

    KL and entropy are measured on the first sample of each caption and are missing for the others.

    Args:
        name: of the side.
        decoder: the model.
        setup: what all sides share.
        reference: the reference's side. What the model draws exactly as the reference did, from the same
            noise, is neither decoded nor measured again, if each image is measured by itself.
    """
    if not measured_alone(setup.config):
        reference = None

    def draw(number: int, captions: list[CaptionRecord]) -> Columns:
        drawn = setup.collect(decoder, captions, setup.samples, remember=True, pixels=reference is None)
        own = policy_columns(decoder, setup.reference, setup.family, drawn, setup.halving)
        if reference is None:
            return image_columns(drawn, setup.measures, setup.halving) | own
        return measure_changed(decoder, drawn, setup.batch_of(reference, number), setup) | own

    return in_batches(name, weights_sha256(decoder), draw, setup)


def measured_alone(config: Config) -> bool:
    """Whether no reward or judge compares images with each other, as far as is known."""
    terms = [*config.reward.parsed, *config.evaluation.parsed_judges]
    return not any(
        term.is_function or term.own.compares_batch or term.own.images_needed(False) > 1 for term in terms
    )


def measure_changed(decoder: nn.Module, drawn: Experience, before: Columns, setup: Setup) -> Columns:
    """The columns of images, those of the reference where the images are its own.

    Args:
        decoder: the model that drew them.
        drawn: the images, with or without pixels.
        before: the columns of the reference's images for the same captions and noise; `POLICY_COLUMNS` are
            left out.
        setup: what all sides share.
    """
    changed = np.flatnonzero((drawn.tokens.cpu().numpy() != before["tokens"]).any(axis=1))
    columns = {key: values.copy() for key, values in before.items() if key not in POLICY_COLUMNS}
    if not len(changed):
        return columns
    rest = drawn.select(torch.from_numpy(changed).to(drawn.tokens.device))
    anew = image_columns(setup.with_pixels(decoder, rest), setup.measures, setup.halving)
    for key in columns.keys() | anew.keys():
        if key not in columns:  # a part that was not reported for the reference's images
            columns[key] = np.full(len(drawn), np.nan)
        columns[key][changed] = anew.get(key, np.nan)
    return columns


@torch.no_grad()
def draw_baseline(baseline: Baseline, reference: Side, setup: Setup) -> Side:
    """The images that a baseline keeps; its first try is the reference's own image.

    The distribution that its tokens come from is unknown, so KL and entropy are missing.
    """

    def draw(number: int, captions: list[CaptionRecord]) -> Columns:
        first = setup.batch_of(reference, number)

        def redraw(rows: np.ndarray, attempt: int) -> Columns:
            wanted = [captions[row // setup.samples] for row in rows]
            batch = setup.collect(setup.reference, wanted, 1, attempt)
            return image_columns(batch, setup.measures, setup.halving) | unknown(
                *POLICY_COLUMNS, num=len(rows)
            )

        if baseline.kind == "best_of":
            kept = best_of(first, redraw, baseline.tries)
        else:
            kept = reject(first, redraw, baseline.tries, safety_bounds(setup.config).upper)
        return kept | unknown(*POLICY_COLUMNS, num=len(kept["reward"]))

    return in_batches(baseline.name, f"tries {baseline.tries}", draw, setup)


def in_batches(
    name: str, weights: str, draw: Callable[[int, list[CaptionRecord]], Columns], setup: Setup
) -> Side:
    """Draws all batches of a side; reads those that an earlier evaluation of the same kind has drawn."""
    content = json.dumps({**setup.identity, "side": name, "weights": weights}, sort_keys=True)
    folder = setup.folder / f"{name}_{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    captions, step, samples = setup.captions, setup.captions_at_once, setup.samples
    chunks = [captions[start : start + step] for start in range(0, len(captions), step)]
    paths = [folder / f"{number:06d}.npz" for number in range(len(chunks))]
    batches = setup.team.on_first(lambda: [read_batch(path) for path in paths])
    missing = [number for number, columns in enumerate(batches) if columns is None]
    form = {"desc": f"evaluate {name}", "unit": "image", "dynamic_ncols": True}
    with tqdm(total=len(captions) * samples, **form, disable=not setup.team.is_first) as bar:
        bar.update(sum(len(chunk) for chunk, known in zip(chunks, batches, strict=True) if known) * samples)
        for start in range(0, len(missing), setup.team.size):
            setup.between()
            at_once = missing[start : start + setup.team.size]
            for number, columns in zip(at_once, draw_at_once(at_once, chunks, draw, setup.team), strict=True):
                if setup.team.is_first:
                    write_batch(paths[number], columns)
                batches[number] = columns
                bar.update(len(chunks[number]) * samples)
    labels = {
        "caption_id": np.array([c.id for c in captions], dtype=object).repeat(samples),
        "caption": np.array([c.text for c in captions], dtype=object).repeat(samples),
        "tag": np.array([c.tag for c in captions], dtype=object).repeat(samples),
        "sample": np.tile(np.arange(samples), len(captions)),
    }
    return Side(labels, _joined(batches), folder)


def draw_at_once(
    numbers: list[int],
    chunks: list[list[CaptionRecord]],
    draw: Callable[[int, list[CaptionRecord]], Columns],
    team: Team,
) -> list[Columns]:
    """Draws some batches, one for each process at most; all processes get all of them."""

    def own() -> Columns | None:
        return draw(numbers[team.rank], chunks[numbers[team.rank]]) if team.rank < len(numbers) else None

    return team.gather(team.everywhere(own))[: len(numbers)]


def _joined(batches: list[Columns]) -> Columns:
    """The columns of all batches; a part that a term did not report for a batch is NaN there."""
    columns = {}
    for key in dict.fromkeys(key for batch in batches for key in batch):
        parts = [batch.get(key, np.full(len(next(iter(batch.values()))), np.nan)) for batch in batches]
        columns[key] = np.concatenate(parts)
    return columns
