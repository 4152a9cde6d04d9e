"""How long the rest of a run takes, from what has been measured so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dalle_ppo.config.settings import Config

SCORING, UPDATE = 0.8, 1.5
"""Guesses for the first iteration: seconds of scoring for each second of drawing and reward, and of an epoch
of updates for each second of scoring. Measured: 0.3 to 1.3 and 1.4 to 2.6 (benchmarks/RESULTS.md)."""
PICTURES = 250
"""Images of each side, at most, that the evaluation decodes again for the report."""
DECODING = 0.25
"""Seconds of decoding for each second of drawing and reward. Measured in the built-in world."""


@dataclass(frozen=True)
class Rates:
    """Measured seconds.

    Args:
        iteration: of an iteration, per image.
        draw: of drawing and rewarding an image.
        score: of the passes of all networks that score an image.
        checkpoint: of a checkpoint with its samples; None if none has been written yet.
    """

    iteration: float
    draw: float
    score: float
    checkpoint: float | None = None


@dataclass(frozen=True)
class Work:
    """What is left to do.

    Args:
        images: images to draw and learn from.
        checkpoints: checkpoints to write.
        samples: images drawn at each checkpoint.
        networks: networks that score an image in training.
        evaluated_captions: captions of the evaluation; 0 if there is none.
        evaluated_images: images of each of its two sides.
    """

    images: int
    checkpoints: int
    samples: int
    networks: int
    evaluated_captions: int
    evaluated_images: int


@dataclass(frozen=True)
class Forecast:
    """Seconds left.

    Args:
        training: of training, checkpoints included.
        evaluation: of the evaluation after it; None if there is none.
        rough: whether no iteration has been measured yet.
    """

    training: float
    evaluation: float | None
    rough: bool = False

    def __str__(self) -> str:
        left = f"{clock(self.training)} left"
        if self.evaluation is not None:
            left += f", {clock(self.training + self.evaluation)} with evaluation"
        return f"about {left}" if self.rough else left


def rates_of(iterations: Sequence[Mapping], checkpoints: Sequence[float] = ()) -> Rates | None:
    """Mean rates of finished iterations.

    Args:
        iterations: their metrics. The first one warms up and is left out once there are more.
        checkpoints: seconds of each checkpoint that has been written.

    Returns:
        None if no iteration has gone through all phases: one whose reward was not usable has not.
    """
    whole = [metrics for metrics in iterations if metrics.get("seconds_update") is not None]
    whole = whole[1:] or whole
    if not whole:
        return None
    images = sum(metrics["images_per_second"] * metrics["seconds"] for metrics in whole)

    def per_image(*names: str) -> float:
        return sum(metrics[name] for metrics in whole for name in names) / images

    return Rates(
        per_image("seconds"),
        per_image("seconds_rollout", "seconds_reward"),
        per_image("seconds_scoring"),
        sum(checkpoints) / len(checkpoints) if checkpoints else None,
    )


def rough_rates(seconds: Mapping[str, float], images: int, epochs: int) -> Rates | None:
    """A guess from the phases that some images have gone through, before there is an iteration to measure.

    Args:
        seconds: of the phases done, as in the metrics of an iteration.
        images: how many they are.
        epochs: passes of an update over its images.

    Returns:
        None if nothing has been drawn and rewarded yet.
    """
    if "seconds_reward" not in seconds:
        return None
    draw = (seconds["seconds_rollout"] + seconds["seconds_reward"]) / images
    score = seconds["seconds_scoring"] / images if "seconds_scoring" in seconds else SCORING * draw
    return Rates(draw + score * (1 + UPDATE * epochs), draw, score)


def work_left(config: Config, iteration: int, samples: int, networks: int, saved: bool = True) -> Work:
    """What a run has left to do.

    Args:
        config: its settings.
        iteration: iterations done.
        samples: images drawn at each checkpoint.
        networks: networks that score an image in training.
        saved: whether the checkpoint that is due after `iteration`, if any, has been written.
    """
    last, every = config.num_iterations, config.checkpoint_every
    first = iteration + saved  # counted without a loop: this is asked after every phase
    due = 0 if first > last else last // every - (first - 1) // every + bool(last % every)
    captions = config.evaluation.num_captions if config.evaluation.at_end else 0
    return Work(
        images=max(0, last - iteration) * config.rollout.rollout_batch_size,
        checkpoints=due,
        samples=samples,
        networks=networks,
        evaluated_captions=captions,
        evaluated_images=captions * config.evaluation.samples_per_caption,
    )


def forecast(rates: Rates, work: Work, rough: bool = False) -> Forecast:
    """Seconds of the work that is left.

    The evaluation draws two sides, scores the first sample of each caption (the policy's by policy and
    reference, the reference's by the reference alone) and decodes some images again.
    """
    checkpoint = rates.checkpoint
    if checkpoint is None:
        checkpoint = work.samples * (rates.draw + rates.score)
    training = work.images * rates.iteration + work.checkpoints * checkpoint
    if not work.evaluated_captions:
        return Forecast(training, None, rough)
    drawing = 2 * work.evaluated_images * rates.draw
    scoring = 3 * work.evaluated_captions * rates.score / work.networks
    decoding = 2 * min(PICTURES, work.evaluated_images) * rates.draw * DECODING
    return Forecast(training, drawing + scoring + decoding, rough)


def clock(seconds: float) -> str:
    """A duration, rounded up to whole seconds: "0:07", "3:20" or "1:02:05"."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
