"""Every number that a run or an evaluation writes down: its name, label, unit, direction and definition.

`docs/metrics.md`, TensorBoard, the report and the verdict read this table. To add a metric, add one entry.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

MINUS, DASH, NBSP = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Unit:
    """What values are counted in, and how they are written.

    Args:
        name: such as "nats per image".
        digits: digits after the point.
        percent: whether values in [0, 1] are written in percent, and their differences in points.
        in_label: whether tables name the unit behind the label.
    """

    name: str
    digits: int = 2
    percent: bool = False
    in_label: bool = False

    @property
    def of_change(self) -> str:
        """What follows a difference: "points" for shares, else nothing."""
        return "points" if self.percent else ""

    def text(self, value: float | None, sign: bool = False, with_unit: bool = True) -> str:
        """A value, or with `sign` a difference, as text; a dash where it is missing."""
        if value is None or not math.isfinite(value):
            return DASH
        number = f"{(100 if self.percent else 1) * value:{'+' if sign else ''}.{self.digits}f}"
        if float(number) == 0:
            number = number.lstrip("+-")
        suffix = NBSP + (self.of_change if sign else "%") if self.percent and with_unit else ""
        return number.replace("-", MINUS) + suffix

    def interval(self, bounds, sign: bool = False) -> str:
        """Bounds as text without their unit; nothing where one is missing."""
        if not bounds or None in bounds:
            return ""
        return f"[{self.text(bounds[0], sign, False)}, {self.text(bounds[1], sign, False)}]"


RATE = Unit("share of images", 1, percent=True)
SHARE = Unit("share", 1, percent=True)
SCORE = Unit("score")
COSINE = Unit("cosine", 3)
NATS = Unit("nats per image", 1, in_label=True)
NATS_PER_TOKEN = Unit("nats per token", 4)
NORMALISED = Unit("normalised score", 3)
LOSS = Unit("loss", 4)
RATIO = Unit("ratio", 3)
COUNT = Unit("count", 0)
SECONDS = Unit("seconds", 1)

ITERATION, EVALUATION, BOTH = "iteration", "evaluation", "both"


@dataclass(frozen=True)
class Metric:
    """One number, or a family of numbers if its name ends with "/".

    Args:
        name: key in metrics.jsonl, evaluation.json or both.
        label: what the report calls it.
        unit: what it is counted in.
        definition: one sentence.
        of: where it is written: "iteration", "evaluation" or "both".
        better: "up" or "down"; empty where neither is better.
        safe_only: whether conclusions are drawn from it on safe captions only.
        by: who measures it, where several do.
        phrase: what a sentence calls it; the label by default.
        note: what stands below a chart of it; the unit by default.
        board: TensorBoard's group and the place in it.
        board_evaluation: the place in TensorBoard's group of evaluations.
    """

    name: str
    label: str
    unit: Unit
    definition: str
    of: str = ITERATION
    better: str = ""
    safe_only: bool = False
    by: str = ""
    phrase: str = ""
    note: str = ""
    board: tuple[str, int] | None = None
    board_evaluation: int | None = None

    @property
    def in_table(self) -> str:
        """What a table calls it."""
        return f"{self.label}, {self.unit.name}" if self.unit.in_label else self.label

    @property
    def in_sentence(self) -> str:
        """What a sentence calls it."""
        lower = self.label if self.label[:2].isupper() else self.label[:1].lower() + self.label[1:]
        return self.phrase or lower

    @property
    def chart_note(self) -> str:
        """What stands below a chart of it."""
        return self.note or self.unit.name


# TensorBoard sorts groups by name: the numbers put the story first.
GOAL, HEALTH, PARTS, DETAILS, COST = "1_goal", "2_health", "3_by_part", "4_details", "5_cost"
EVALUATIONS = "6_evaluation"

_PROGRESS = (
    Metric("iteration", "Iteration", COUNT, "Number of this iteration."),
    Metric("images", "Images drawn", COUNT, "Images drawn so far.", board=(COST, 1)),
)
_COUNTS = (
    Metric("num_images", "Images", COUNT, "Images kept.", of=EVALUATION),
    Metric("num_captions", "Captions", COUNT, "Distinct captions among them.", of=EVALUATION),
    Metric("images_drawn", "Images drawn for one", Unit("images"), "Images drawn for one that is kept: 1, "
           "and more for baselines.", of=EVALUATION),
)  # fmt: skip
_SAFETY = (
    Metric("unsafe_rate", "Unsafe images", RATE, "Share of images whose detector probability is above the "
           "upper threshold (0.4).", of=BOTH, better="down", by="detector of the reward",
           phrase="unsafe rate", note="share of images above the upper threshold", board=(GOAL, 1),
           board_evaluation=1),
    Metric("judge_unsafe_rate", "Unsafe, by the judge", RATE, "Share of images in which the judge sees an "
           "unsafe icon.", of=EVALUATION, better="down", by="judge", phrase="judge's unsafe rate",
           board_evaluation=2),
    Metric("heldout_unsafe_rate", "Unsafe, by the held-out detector", RATE, "Share of images whose "
           "probability by `evaluation.heldout_detector` is above the upper threshold.", of=EVALUATION,
           better="down", by="held-out detector", phrase="held-out detector's unsafe rate",
           board_evaluation=3),
    Metric("share_above_lower", "Above the lower threshold", RATE, "Share of images whose detector "
           "probability is above the lower threshold (0.1).", of=BOTH, better="down"),
    Metric("nsfw_probability_mean", "NSFW probability, mean", Unit("probability", 3), "Mean probability "
           "that the detector gives.", better="down"),
)  # fmt: skip
_CONTENT = (
    Metric("judge_alignment", "Named icons drawn", SHARE, "Over captions that name safe icons: share of the "
           "named icons that the judge sees in the named colour.", of=EVALUATION, better="up",
           safe_only=True, by="judge", phrase="alignment", note="share of the named icons",
           board_evaluation=7),
    Metric("clip_similarity", "CLIP similarity", COSINE, "Mean cosine of caption and image over images at "
           "or below the lower threshold (0.1).", of=BOTH, better="up", safe_only=True,
           by="CLIP of the reward", note="cosine over images the detector calls safe", board=(GOAL, 3),
           board_evaluation=5),
    Metric("heldout_clip_similarity", "CLIP similarity, held-out CLIP", COSINE, "Mean cosine in "
           "`evaluation.heldout_clip`, over the same images as `clip_similarity`.", of=EVALUATION,
           better="up", safe_only=True, by="held-out CLIP", phrase="held-out CLIP similarity",
           board_evaluation=6),
    Metric("judge_unrecognised_rate", "Nothing recognisable", RATE, "Share of images in which the judge sees "
           "no clean icon at all.", of=EVALUATION, better="down", by="judge",
           phrase="images without a recognisable icon", board_evaluation=8),
)  # fmt: skip
_REWARD = (
    Metric("reward_mean", "Reward, mean", SCORE, "Mean raw score, before any normalisation and without KL.",
           of=BOTH, better="up", by="reward", phrase="reward", note="mean raw score", board=(GOAL, 2),
           board_evaluation=4),
    Metric("reward_median", "Reward, median", SCORE, "Median raw score.", of=BOTH, better="up",
           board=(GOAL, 6)),
    Metric("reward_q25", "Reward, lower quartile", SCORE, "Lower quartile of the raw score.", of=EVALUATION,
           better="up"),
    Metric("reward_q75", "Reward, upper quartile", SCORE, "Upper quartile of the raw score.", of=EVALUATION,
           better="up"),
    Metric("reward_std", "Reward, standard deviation", SCORE, "Standard deviation of the raw score over the "
           "images.", of=BOTH),
    Metric("reward_negative_mean", "Reward, mean of negative ones", Unit("score", 1), "Mean of the negative "
           "raw scores; null where there are none.", of=BOTH, better="up"),
)  # fmt: skip
_DISTANCE = (
    Metric("diversity", "Diversity within a caption", Unit("cosine distance", 3), "Mean cosine distance in "
           "CLIP space between samples of one caption.", of=EVALUATION, by="diversity",
           board_evaluation=11),
    Metric("kl", "KL from the reference", NATS, "Exact KL(policy, reference) on the policy's own samples; in "
           "an evaluation, on the first image of each caption.", of=BOTH, by="KL", board=(GOAL, 4),
           board_evaluation=9),
    Metric("kl_k1", "KL by the k1 estimate", NATS, "The same KL, estimated by log pi - log pi_ref of the "
           "drawn tokens."),
    Metric("kl_k3", "KL by the k3 estimate", NATS, "The same KL, estimated by r - 1 - log r of the drawn "
           "tokens, where r = pi_ref / pi."),
    Metric("entropy", "Entropy", NATS, "Entropy of the guided distribution that tokens are drawn from; in an "
           "evaluation, on the first image of each caption.", of=BOTH, by="entropy", board=(GOAL, 5),
           board_evaluation=10),
    Metric("kl_coef", "KL coefficient", NORMALISED, "Weight of the KL penalty, in units of the advantages "
           "(penalty in the loss) or of the normalised scores (penalty in the reward)."),
    Metric("kl_coef_raw", "KL coefficient, raw", SCORE, "Weight of the KL penalty in raw reward units: "
           "kl_coef times reward_scale and, in the loss with whitened advantages, times advantage_std; null "
           "in the loss with advantages group or per_prompt, whose unit differs from caption to caption."),
    Metric("reward_scale", "Reward scale", SCORE, "Running standard deviation that the scores are divided "
           "by."),
)  # fmt: skip
_OPTIMISATION = (
    Metric("policy_loss", "Policy loss", LOSS, "Mean policy loss over the iteration's updates, before "
           "importance weights."),
    Metric("value_loss", "Value loss", LOSS, "Mean of half the (clipped) squared error of the critic, in "
           "normalised units.", better="down"),
    Metric("kl_loss", "KL loss", LOSS, "Mean KL term of the loss, where the KL penalty is placed there."),
    Metric("entropy_loss", "Entropy loss", LOSS, "Mean entropy term of the loss."),
    Metric("clip_fraction", "Clipped tokens", Unit("share of tokens", 1, percent=True), "Share of tokens "
           "whose gradient was switched off by a clip of the ratio or by the dual clip.", board=(HEALTH, 4)),
    Metric("ratio_first_minibatch_max_deviation", "First minibatch's ratio, deviation from 1",
           Unit("ratio", 6), "Largest distance of a ratio from 1 in the first minibatch; 0 up to rounding, "
           "unless something such as dropout differs between the passes.", better="down",
           board=(HEALTH, 1)),
    Metric("reference_changes", "Changed tensors of the reference", COUNT, "Tensors of the reference whose "
           "bits are not those it began with; always 0.", better="down", board=(HEALTH, 2)),
    Metric("ratio_max", "Ratio, largest", RATIO, "Largest ratio of new to old token probability in the "
           "iteration."),
    Metric("approx_kl", "KL of the update", NATS_PER_TOKEN, "Mean k3 estimate of KL(old policy, new policy), "
           "over the iteration's updates.", board=(HEALTH, 5)),
    Metric("sampler_log_prob_gap", "Sampler's rounding", NATS_PER_TOKEN, "Mean absolute difference between a "
           "token's log-prob in the cached sampler and in the training forward.", better="down",
           board=(HEALTH, 6)),
    Metric("explained_variance", "Variance explained by the critic", Unit("share of variance", 3),
           "1 - Var(returns - values) / Var(returns); 1 is perfect, 0 a constant critic.", better="up",
           note="share of the returns' variance explained", board=(HEALTH, 3)),
    Metric("value_mean", "Value, mean", NORMALISED, "Mean value that the critic gives before the update."),
    Metric("return_mean", "Return, mean", NORMALISED, "Mean return.", better="up"),
    Metric("advantage_std", "Advantage, standard deviation", NORMALISED, "Standard deviation of the "
           "advantages before whitening."),
    Metric("learning_rate", "Actor's learning rate", Unit("per step", 6), "The actor's learning rate."),
    Metric("critic_learning_rate", "Critic's learning rate", Unit("per step", 6), "The critic's learning "
           "rate."),
    Metric("gradient_norm", "Actor's gradient norm", Unit("norm", 4), "Mean norm of the actor's gradient "
           "before clipping."),
    Metric("critic_gradient_norm", "Critic's gradient norm", Unit("norm", 4), "Mean norm of the critic's "
           "gradient before clipping."),
    Metric("skipped_updates", "Skipped updates", COUNT, "Updates of this iteration that were left out "
           "because a loss or gradient was not finite.", better="down", board=(HEALTH, 7)),
    Metric("batches_left_out", "Batches left out", COUNT, "1 where the reward was not usable, so that this "
           "iteration learned nothing; else 0.", better="down", board=(HEALTH, 8)),
    Metric("captions_truncated", "Truncated captions", Unit("share of captions", 1, percent=True), "Share of "
           "captions longer than the text encoder reads.", better="down"),
)  # fmt: skip
_COST = (
    Metric("seconds", "Time", SECONDS, "Seconds this iteration took.", board=(COST, 2)),
    Metric("seconds_rollout", "Time of the rollout", SECONDS, "Of these, sampling and decoding.",
           board=(COST, 3)),
    Metric("seconds_reward", "Time of the reward", SECONDS, "Of these, CLIP and its heads.",
           board=(COST, 4)),
    Metric("seconds_scoring", "Time of the scoring", SECONDS, "Of these, old, reference and value passes.",
           board=(COST, 5)),
    Metric("seconds_update", "Time of the update", SECONDS, "Of these, optimisation.", board=(COST, 6)),
    Metric("images_per_second", "Speed", Unit("images per second", 1), "Images of this iteration over its "
           "seconds.", better="up", board=(COST, 7)),
    Metric("memory_gb", "Memory, peak", Unit("10^9 bytes"), "Peak memory so far of the device, or of the "
           "process if the device has no memory of its own; null where the system does not tell.",
           better="down", board=(COST, 8)),
)  # fmt: skip
_PICTURES = (
    Metric("image/total_variation", "Total variation", Unit("0 to 1", 4), "Mean absolute difference of "
           "neighbouring pixels, down and across.", of=EVALUATION, safe_only=True),
    Metric("image/high_frequency_share", "Share of fine detail", Unit("share", 2, percent=True), "Share of "
           "the brightness's variance above a quarter cycle per pixel; white noise has 0.80.",
           of=EVALUATION, safe_only=True,
           note="share of the brightness's variance that is fine (noise raises it)"),
    Metric("image/colourfulness", "Colourfulness", Unit("levels of 255", 1), "Spread plus 0.3 times mean of "
           "the opponent colours (Hasler and Suesstrunk 2003); 0 is grey.", of=EVALUATION, safe_only=True),
    Metric("image/jpeg_bytes", "Bytes as JPEG", Unit("bytes", 0), "Size as JPEG of quality 75.",
           of=EVALUATION, safe_only=True),
    Metric("image/distinct_codes", "Distinct codes", Unit("codes", 1), "Different codes among the image's "
           "tokens.", of=EVALUATION, safe_only=True),
)  # fmt: skip
_FAMILIES = (
    Metric("reward/", "Reward part {}", SCORE, "Mean of one part of the reward that has no metric of its "
           "own, before its weight; NAME is the part's.", of=BOTH, note="mean part of the reward"),
    Metric("unsafe_rate/", "Unsafe images, {}", RATE, "`unsafe_rate` over the captions of one tag."),
    Metric("reward_mean/", "Reward, mean, {}", SCORE, "`reward_mean` over the captions of one tag."),
    Metric("clip_similarity/", "CLIP similarity, {}", COSINE, "`clip_similarity` over the captions of one "
           "tag."),
    Metric("captions/", "Captions, {}", COUNT, "Captions since the run began: `share_TAG` of those drawn, "
           "`drawn`, and of files `read` and `skipped_REASON`."),
)  # fmt: skip

SECTIONS: Mapping[str, tuple[Metric, ...]] = {
    "Progress": _PROGRESS,
    "Size of an evaluation": _COUNTS,
    "Safety": _SAFETY,
    "What the pictures show": _CONTENT,
    "Reward": _REWARD,
    "Diversity and distance from the reference": _DISTANCE,
    "Optimisation": _OPTIMISATION,
    "Cost": _COST,
    "Image statistics": _PICTURES,
    "Families": _FAMILIES,
}
"""The whole table as docs/metrics.md shows it, by heading."""

METRICS: Mapping[str, Metric] = {
    entry.name: entry for entries in SECTIONS.values() for entry in entries if entry not in _FAMILIES
}
"""Every metric that has a name of its own, by name."""

FAMILIES: Mapping[str, Metric] = {entry.name: entry for entry in _FAMILIES}
"""Metrics that exist once a reward part, caption tag or count, by prefix."""

GOALS = sorted((m for m in METRICS.values() if m.board and m.board[0] == GOAL), key=lambda m: m.board[1])
"""What training is about, in TensorBoard's order."""

COMPARED = tuple(
    m for part in (_SAFETY, _CONTENT, _REWARD, _DISTANCE) for m in part if m.of in (EVALUATION, BOTH)
)
"""What an evaluation compares policy and reference by, in the report's order."""

IMAGE_STATISTICS = _PICTURES
"""Statistics of pixels and codes, in the report's order."""

ITERATION_METRICS = tuple(name for name, m in METRICS.items() if m.of in (ITERATION, BOTH))
"""Names that every line of metrics.jsonl holds."""


def find_metric(name: str) -> Metric | None:
    """The entry of a metric; for one of a family, the family's with its name put in. None if undefined."""
    if name in METRICS:
        return METRICS[name]
    family = next((family for prefix, family in FAMILIES.items() if name.startswith(prefix)), None)
    if family is None:
        return None
    return replace(family, name=name, label=family.label.format(name.removeprefix(family.name)))


def undefined_metrics(metrics: Mapping[str, object]) -> list[str]:
    """Names that the table does not define: a trainer should write none."""
    return [name for name in metrics if find_metric(name) is None]
