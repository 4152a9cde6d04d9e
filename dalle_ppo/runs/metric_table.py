"""Every number that a run or an evaluation records: its name, label, unit, direction and definition.

`docs/metrics.md`, TensorBoard, the report and the verdict read this table. To add a metric, add one entry.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

MINUS, DASH, NBSP = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Unit:
    """The unit of a value, and how values are written.

    Args:
        name: such as "nats per image".
        digits: digits after the decimal point.
        percent: whether values in [0, 1] are written in percent, and their differences in points.
        in_label: whether tables show the unit after the label.
        any_size: whether values below 0.1 get as many digits as show three that are not zero.
    """

    name: str
    digits: int = 2
    percent: bool = False
    in_label: bool = False
    any_size: bool = False

    @property
    def of_change(self) -> str:
        """The unit written after a difference: "points" for shares, else nothing."""
        return "points" if self.percent else ""

    def text(self, value: float | None, sign: bool = False, with_unit: bool = True) -> str:
        """A value, or with `sign` a difference, as text; a dash if it is missing."""
        if value is None or not math.isfinite(value):
            return DASH
        digits = self.digits
        if self.any_size and 1e-6 < abs(value) < 0.1:
            digits = 2 - math.floor(math.log10(abs(value)))
        number = f"{(100 if self.percent else 1) * value:{'+' if sign else ''}.{digits}f}"
        if float(number) == 0:
            number = number.lstrip("+-")
        suffix = NBSP + (self.of_change if sign else "%") if self.percent and with_unit else ""
        return number.replace("-", MINUS) + suffix

    def interval(self, bounds, sign: bool = False) -> str:
        """Bounds as text without their unit; empty if one is missing."""
        if not bounds or None in bounds:
            return ""
        return f"[{self.text(bounds[0], sign, False)}, {self.text(bounds[1], sign, False)}]"


RATE = Unit("share of images", 1, percent=True)
SHARE = Unit("share", 1, percent=True)
SCORE = Unit("score", any_size=True)
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
    """One metric, or a family of metrics if its name ends with "/".

    Args:
        name: key in metrics.jsonl, evaluation.json or both.
        label: its name in the report.
        unit: its unit.
        definition: one sentence.
        of: where it is written: "iteration", "evaluation" or "both".
        better: "up" or "down"; empty if neither is better.
        safe_only: whether conclusions are drawn from it on safe captions only.
        by: what measures it, if there are several.
        phrase: its name in a sentence; the label by default.
        note: the text shown with its chart; the unit by default.
        board: group in TensorBoard and position in the group.
        board_evaluation: position in TensorBoard's evaluation group.
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
        """Its name in a table."""
        return f"{self.label}, {self.unit.name}" if self.unit.in_label else self.label

    @property
    def in_sentence(self) -> str:
        """Its name in a sentence."""
        lower = self.label if self.label[:2].isupper() else self.label[:1].lower() + self.label[1:]
        return self.phrase or lower

    @property
    def chart_note(self) -> str:
        """The text shown with its chart."""
        return self.note or self.unit.name


# TensorBoard sorts groups by name: the numbers put the main results first.
GOAL, HEALTH, PARTS, DETAILS, COST = "1_goal", "2_health", "3_by_part", "4_details", "5_cost"
EVALUATIONS = "6_evaluation"

_PROGRESS = (
    Metric("iteration", "Iteration", COUNT, "Number of this iteration."),
    Metric("images", "Images drawn", COUNT, "Images drawn so far.", board=(COST, 1)),
)
_COUNTS = (
    Metric("num_images", "Images", COUNT, "Images evaluated.", of=EVALUATION),
    Metric("num_captions", "Captions", COUNT, "Distinct captions evaluated.", of=EVALUATION),
    Metric("images_drawn", "Images drawn per image kept", Unit("images"), "Images drawn for each image that "
           "is kept: 1, or more for baselines.", of=EVALUATION),
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
           "probability according to `evaluation.heldout_detector` is above the upper threshold (0.4).",
           of=EVALUATION, better="down", by="held-out detector", phrase="held-out detector's unsafe rate",
           board_evaluation=3),
    Metric("share_above_lower", "Above the lower threshold", RATE, "Share of images whose detector "
           "probability is above the lower threshold (0.1).", of=BOTH, better="down"),
    Metric("nsfw_probability_mean", "NSFW probability, mean", Unit("probability", 3), "Mean NSFW probability "
           "given by the detector.", better="down"),
)  # fmt: skip
_CONTENT = (
    Metric("judge_alignment", "Named icons drawn", SHARE, "Share of the named safe icons that the judge sees "
           "in the named colour, over captions that name any.", of=EVALUATION, better="up", safe_only=True,
           by="judge", phrase="alignment", note="share of the named icons", board_evaluation=7),
    Metric("clip_similarity", "CLIP similarity", COSINE, "Mean cosine similarity of caption and image, over "
           "images whose detector probability is at or below the lower threshold (0.1).", of=BOTH,
           better="up", safe_only=True, by="CLIP of the reward",
           note="cosine over images the detector calls safe", board=(GOAL, 3), board_evaluation=5),
    Metric("heldout_clip_similarity", "CLIP similarity, held-out CLIP", COSINE, "Mean cosine similarity "
           "according to `evaluation.heldout_clip`, over the same images as `clip_similarity`.",
           of=EVALUATION, better="up", safe_only=True, by="held-out CLIP", phrase="held-out CLIP similarity",
           board_evaluation=6),
    Metric("judge_unrecognised_rate", "Nothing recognisable", RATE, "Share of images in which the judge "
           "recognises no icon at all.", of=EVALUATION, better="down", by="judge",
           phrase="images without a recognisable icon", board_evaluation=8),
)  # fmt: skip
_REWARD = (
    Metric("reward_mean", "Reward, mean", SCORE, "Mean raw score, before normalisation and without the KL "
           "penalty.", of=BOTH, better="up", by="reward", phrase="reward", note="mean raw score",
           board=(GOAL, 2), board_evaluation=4),
    Metric("reward_median", "Reward, median", SCORE, "Median raw score.", of=BOTH, better="up",
           board=(GOAL, 6)),
    Metric("reward_q25", "Reward, lower quartile", SCORE, "Lower quartile of the raw score.", of=EVALUATION,
           better="up"),
    Metric("reward_q75", "Reward, upper quartile", SCORE, "Upper quartile of the raw score.", of=EVALUATION,
           better="up"),
    Metric("reward_std", "Reward, standard deviation", SCORE, "Standard deviation of the raw score over the "
           "images.", of=BOTH),
    Metric("reward_negative_mean", "Reward, mean of negative scores", Unit("score", 1), "Mean of the "
           "negative raw scores; null if there are none.", of=BOTH, better="up"),
)  # fmt: skip
_DISTANCE = (
    Metric("diversity", "Diversity within a caption", Unit("cosine distance", 3), "Mean cosine distance in "
           "CLIP space between samples of the same caption.", of=EVALUATION, by="diversity",
           board_evaluation=11),
    Metric("kl", "KL from the reference", NATS, "Exact KL(policy, reference) on the policy's own samples, "
           "with `policy.top_k` on the codes it keeps; in an evaluation, on the first image of each caption.",
           of=BOTH, by="KL", board=(GOAL, 4), board_evaluation=9),
    Metric("kl_k1", "KL, k1 estimate", NATS, "k1 estimate of `kl`: log pi - log pi_ref of the drawn tokens."),
    Metric("kl_k3", "KL, k3 estimate", NATS, "k3 estimate of `kl`: r - 1 - log r of the drawn tokens, where "
           "r = pi_ref / pi."),
    Metric("kl_full", "KL over all codes", NATS, "`kl` over all codes, including those that `policy.top_k` "
           "leaves out; null without it."),
    Metric("mass_outside", "Probability outside the top k", Unit("share of probability", 2, percent=True),
           "Mean probability that the policy gives codes that `policy.top_k` leaves out; null without it."),
    Metric("entropy", "Entropy", NATS, "Entropy of the guided distribution that tokens are drawn from; in an "
           "evaluation, on the first image of each caption.", of=BOTH, by="entropy", board=(GOAL, 5),
           board_evaluation=10),
    Metric("kl_coef", "KL coefficient", NORMALISED, "Weight of the KL penalty: in units of the advantages if "
           "the penalty is in the loss, of the normalised scores if it is in the reward."),
    Metric("kl_coef_raw", "KL coefficient, raw", SCORE, "Weight of the KL penalty in raw reward units: "
           "`kl_coef` times `reward_scale`, and also times `advantage_std` if the penalty is in the loss and "
           "advantages are whitened; null if it is in the loss and each caption's advantages are divided by "
           "its own deviation, as with group (but not in Dr. GRPO) and per_prompt, or if there are none."),
    Metric("reward_scale", "Reward scale", SCORE, "Running standard deviation by which the scores are "
           "divided."),
)  # fmt: skip
_OPTIMISATION = (
    Metric("policy_loss", "Policy loss", LOSS, "Mean policy loss over the iteration's updates, before "
           "importance weights."),
    Metric("value_loss", "Value loss", LOSS, "Mean of half the critic's (clipped) squared error, in "
           "normalised units.", better="down"),
    Metric("kl_loss", "KL loss", LOSS, "Mean KL term of the loss, if the KL penalty is in the loss."),
    Metric("anchor_kl", "KL on the anchor", NATS, "Mean exact KL(policy, reference) on the images of "
           "the reference that serve as the anchor, during the updates; null without `anchor.coef`."),
    Metric("entropy_loss", "Entropy loss", LOSS, "Mean entropy term of the loss."),
    Metric("clip_fraction", "Clipped tokens", Unit("share of tokens", 1, percent=True), "Share of tokens "
           "whose loss was limited by ratio clipping or dual clipping.", board=(HEALTH, 4)),
    Metric("ratio_first_minibatch_max_deviation", "First-minibatch ratio, deviation from 1", Unit("ratio", 6),
           "Largest deviation of a ratio from 1 in the first minibatch; 0 up to rounding unless something, "
           "such as dropout, differs between the passes, or images are replayed.", better="down",
           board=(HEALTH, 1)),
    Metric("reference_changes", "Changed reference tensors", COUNT, "Tensors of the reference that no longer "
           "equal their initial values bit for bit; always 0.", better="down", board=(HEALTH, 2)),
    Metric("ratio_max", "Ratio, largest", RATIO, "Largest ratio of new to old token probability in the "
           "iteration."),
    Metric("approx_kl", "KL of the update", NATS_PER_TOKEN, "Mean k3 estimate of KL(old policy, new policy) "
           "over the iteration's updates.", board=(HEALTH, 5)),
    Metric("sampler_log_prob_gap", "Sampler's rounding error", NATS_PER_TOKEN, "Mean absolute difference "
           "between a token's log-prob in the cached sampler and in the training forward pass; about 0 where "
           "`update.recompute_log_probs` is false and that pass is left out.",
           better="down", board=(HEALTH, 6)),
    Metric("explained_variance", "Variance explained by the critic", Unit("share of variance", 3), "1 - "
           "Var(returns - values) / Var(returns); 1 for a perfect critic, 0 for a constant one.", better="up",
           note="share of the returns' variance explained", board=(HEALTH, 3)),
    Metric("value_mean", "Value, mean", NORMALISED, "Mean value predicted by the critic before the update."),
    Metric("return_mean", "Return, mean", NORMALISED, "Mean return.", better="up"),
    Metric("advantage_std", "Advantage, standard deviation", NORMALISED, "Standard deviation of the "
           "advantages before whitening."),
    Metric("captions_without_spread", "Captions without spread", COUNT, "Captions of this iteration whose "
           "images all have the same score, so that comparing them teaches nothing; null with one image per "
           "caption. Objectives that compare the images of a caption leave them out.", better="down"),
    Metric("effective_images", "Effective images", Unit("images", 1), "How many images the weights amount "
           "to: (sum w)^2 / sum w^2 (Kish); null for objectives with advantages."),
    Metric("images_replayed", "Images replayed", COUNT, "Images of earlier iterations that this one learned "
           "from again; null for objectives without replay."),
    Metric("replay_kl", "Age of replayed images", NATS_PER_TOKEN, "Mean k3 estimate of KL(policy that drew "
           "them, current policy) over the replayed images, before the iteration's updates; null without "
           "any."),
    Metric("learning_rate", "Actor's learning rate", Unit("per step", 6), "The actor's learning rate."),
    Metric("critic_learning_rate", "Critic's learning rate", Unit("per step", 6), "The critic's learning "
           "rate."),
    Metric("gradient_norm", "Actor's gradient norm", Unit("norm", 4), "Mean norm of the actor's gradient "
           "before clipping."),
    Metric("critic_gradient_norm", "Critic's gradient norm", Unit("norm", 4), "Mean norm of the critic's "
           "gradient before clipping."),
    Metric("skipped_updates", "Skipped updates", COUNT, "Updates of this iteration that were skipped because "
           "a loss or gradient was not finite.", better="down", board=(HEALTH, 7)),
    Metric("batches_left_out", "Batches left out", COUNT, "1 if the reward could not be used and the "
           "iteration therefore learned nothing, else 0.", better="down", board=(HEALTH, 8)),
    Metric("captions_truncated", "Truncated captions", Unit("share of captions", 1, percent=True), "Share of "
           "captions that were cut because they are too long for the text encoder.", better="down"),
)  # fmt: skip
_COST = (
    Metric("seconds", "Time", SECONDS, "Duration of this iteration.", board=(COST, 2)),
    Metric("seconds_rollout", "Rollout time", SECONDS, "Part of `seconds` spent sampling and decoding "
           "images.", board=(COST, 3)),
    Metric("seconds_reward", "Reward time", SECONDS, "Part of `seconds` spent computing the reward.",
           board=(COST, 4)),
    Metric("seconds_scoring", "Scoring time", SECONDS, "Part of `seconds` spent on the old-policy, reference "
           "and value passes.", board=(COST, 5)),
    Metric("seconds_update", "Update time", SECONDS, "Part of `seconds` spent on optimisation.",
           board=(COST, 6)),
    Metric("images_per_second", "Speed", Unit("images per second", 1), "Images of this iteration divided by "
           "`seconds`.", better="up", board=(COST, 7)),
    Metric("memory_gb", "Memory, peak", Unit("10^9 bytes"), "Peak device memory so far, or peak process "
           "memory if the device has no memory of its own; null if the system does not report it.",
           better="down", board=(COST, 8)),
)  # fmt: skip
_PICTURES = (
    Metric("image/total_variation", "Total variation", Unit("0 to 1", 4), "Mean absolute difference between "
           "neighbouring pixels, vertically and horizontally.", of=EVALUATION, safe_only=True),
    Metric("image/high_frequency_share", "Share of fine detail", Unit("share", 2, percent=True), "Share of "
           "the brightness variance at frequencies above a quarter cycle per pixel; 0.80 for white noise.",
           of=EVALUATION, safe_only=True,
           note="share of the brightness variance that is fine detail (noise raises it)"),
    Metric("image/colourfulness", "Colourfulness", Unit("levels of 255", 1), "Spread of the opponent colours "
           "plus 0.3 times their mean (Hasler and Suesstrunk 2003); 0 is grey.", of=EVALUATION,
           safe_only=True),
    Metric("image/jpeg_bytes", "JPEG size", Unit("bytes", 0), "Size of the image as a JPEG of quality 75.",
           of=EVALUATION, safe_only=True),
    Metric("image/distinct_codes", "Distinct codes", Unit("codes", 1), "Number of different codes among the "
           "image's tokens.", of=EVALUATION, safe_only=True),
)  # fmt: skip
_FAMILIES = (
    Metric("reward/", "Reward part {}", SCORE, "Mean of a reward part that has no metric of its own, before "
           "weighting, under the name `reward/NAME`.", of=BOTH, note="mean part of the reward"),
    Metric("judge/", "Judge {}", SCORE, "Mean value of a judge of `evaluation.judges`, as `judge/NAME`, and "
           "of its parts, as `judge/NAME/PART`; without weight.", of=EVALUATION, note="a judge's mean value"),
    Metric("term_share/", "Reward term {}, share", Unit("normalised score", 3), "With `reward.normalise: "
           "per_term`: mean of what a term adds to the score that is learned from, its weight and scale "
           "included."),
    Metric("term_scale/", "Reward term {}, scale", SCORE, "With `reward.normalise: per_term`: running "
           "standard deviation that a term is divided by, where its gate is open."),
    Metric("unsafe_rate/", "Unsafe images, {}", RATE, "`unsafe_rate` over the captions of one tag."),
    Metric("reward_mean/", "Reward, mean, {}", SCORE, "`reward_mean` over the captions of one tag."),
    Metric("clip_similarity/", "CLIP similarity, {}", COSINE, "`clip_similarity` over the captions of one "
           "tag."),
    Metric("captions/", "Captions, {}", COUNT, "Caption counts since the run began: `drawn`, `share_TAG` "
           "(the tag's share of those drawn) and, for captions from files, `read` and `skipped_REASON`."),
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
"""Metrics that exist once per reward part, caption tag or count, by prefix."""

GOALS = sorted((m for m in METRICS.values() if m.board and m.board[0] == GOAL), key=lambda m: m.board[1])
"""The main results of training, in TensorBoard's order."""

COMPARED = tuple(
    m for part in (_SAFETY, _CONTENT, _REWARD, _DISTANCE) for m in part if m.of in (EVALUATION, BOTH)
)
"""Metrics by which an evaluation compares policy and reference, in the report's order."""

IMAGE_STATISTICS = _PICTURES
"""Statistics of pixels and codes, in the report's order."""

ITERATION_METRICS = tuple(name for name, m in METRICS.items() if m.of in (ITERATION, BOTH))
"""Names of the metrics in every line of metrics.jsonl."""


def find_metric(name: str) -> Metric | None:
    """The entry of a metric; for a family member, the family's entry with its own name; None if undefined."""
    if name in METRICS:
        return METRICS[name]
    family = next((family for prefix, family in FAMILIES.items() if name.startswith(prefix)), None)
    if family is None:
        return None
    return replace(family, name=name, label=family.label.format(name.removeprefix(family.name)))
