"""Every setting of a run, with its default: the one place where defaults live.

A run's settings are one YAML file, overridden on the command line by the same dotted names
(`--ppo.learning_rate 1e-4`). The resolved settings are saved with the run.
"""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from .models.policy import PolicySettings
from .rl.kl_placement import check_kl_placement


@dataclass(frozen=True)
class ModelConfig:
    """Which text-to-image model is trained.

    Args:
        path: "builtin" for the built-in world's; "mini" or "mega" for DALL·E's weights from the hub, or a
            folder of them; a folder of `pretrain`; or a run's, whose policy is then the starting point and
            the reference. With mini and Mega set policy.guidance, too: 1.5 suits the built-in world, 10 to 16
            is usual for them.
        revision: commit of hub repository kuprel/min-dalle for "mini" and "mega"; null is its main branch. A
            run's config.yaml holds the commit that this led to, and every later step loads that one.
    """

    path: str = "builtin"
    revision: str | None = None


@dataclass(frozen=True)
class CaptionsConfig:
    """Where captions come from, how they are mixed and which are left out.

    Args:
        source: "builtin" for the built-in world; "hub:OWNER/NAME" for a data set on the hub, read with the
            token of HF_TOKEN; "prompts:NAME" for simple_animals, animal_activities or counting; or a
            parquet, CSV, TSV, JSONL or text file, or a folder or glob of them.
        column: the caption column of a table; null looks for TEXT, caption, text and so on.
        tag_column: its column of tags; null looks for NSFW and tag. A missing tag is UNTAGGED.
        shares: share of each tag in a batch; OTHER is all tags not named. null is half UNLIKELY and a
            quarter each UNSURE and NSFW for "builtin", half NSFW and half OTHER for "hub:", and captions as
            they come for everything else.
        clean: repair mojibake, decode entities, drop HTML tags and control characters, collapse spaces.
        drop_duplicates: drop captions whose normalised text was drawn shortly before.
        min_chars: least length of a caption, in characters.
        max_chars: greatest length.
        min_latin_share: least share of Latin letters among its letters; 0 admits every script.
        blocklist: file with a phrase a line; captions with one of them are left out.
        allowlist: file with a phrase a line; captions with none of them are left out.
        skip_bad_files: leave out, with a warning and a count, files that cannot be read, instead of
            stopping.
        rank: of several runs that share the captions, this one's number, from 0. Each trains on captions of
            its own; together they have those of one run. Held-out captions are the same for all.
        world_size: how many runs share them.
    """

    source: str = "builtin"
    column: str | None = None
    tag_column: str | None = None
    shares: dict[str, float] | None = None
    clean: bool = False
    drop_duplicates: bool = True
    min_chars: int = 1
    max_chars: int = 2000
    min_latin_share: float = 0.0
    blocklist: str | None = None
    allowlist: str | None = None
    skip_bad_files: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self, "captions", "world_size")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"captions.rank is {self.rank}; it must lie between 0 and captions.world_size - 1 = "
                f"{self.world_size - 1}"
            )


@dataclass(frozen=True)
class ClipConfig:
    """The CLIP behind the reward.

    Args:
        model: "builtin", a folder in open_clip's layout, or a model name open_clip knows.
        pretrained: open_clip's tag of the weights; null for a folder.
    """

    model: str = "builtin"
    pretrained: str | None = None


@dataclass(frozen=True)
class ExtraReward:
    """A reward of one's own, added to the total.

    Args:
        call: "my_module:my_function", called as `(images [B, 3, H, W] in [0, 1], captions) -> RewardResult`
            or a float tensor [B].
        weight: its factor.
    """

    call: str
    weight: float = 1.0


@dataclass(frozen=True)
class RewardConfig:
    """Thresholded NSFW score plus CLIP similarity; an unsafe image earns nothing for its caption.

    Args:
        detector: "builtin"; one of LAION's by name, "laion-l14" or "laion-b32", downloaded once; or a file
            that `converters/keras_nsfw_to_torch.py` wrote.
        unsafe_threshold: above it an image is unsafe.
        unsure_threshold: above it, up to `unsafe_threshold`, it is suspicious.
        unsafe_penalty: score of an unsafe image; it earns nothing for matching its caption.
        unsure_penalty: score of a suspicious one; likewise.
        clean_threshold: below it an image gets `clean_bonus`.
        clean_bonus: added for a certainly clean image.
        clip_weight: factor of the cosine of image and caption, for images presumed safe.
        extra: rewards of one's own, as a list of {call, weight}.
        bad_result: what a reward does that raises, is not finite or has the wrong shape. "stop" ends the run
            with a checkpoint of before the batch; "skip" leaves the batch out, with a warning and a count in
            `batches_left_out`, and stops at the third in a row. Use skip for rewards that fail now and then.
    """

    detector: str = "builtin"
    unsafe_threshold: float = 0.4
    unsure_threshold: float = 0.1
    unsafe_penalty: float = -30.0
    unsure_penalty: float = -10.0
    clean_threshold: float = 0.01
    clean_bonus: float = 0.0
    clip_weight: float = 20.0
    extra: list[ExtraReward] = field(default_factory=list)
    bad_result: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if not 0 <= self.clean_threshold <= self.unsure_threshold <= self.unsafe_threshold <= 1:
            raise ValueError(
                "reward thresholds must be ordered 0 <= clean_threshold <= unsure_threshold <= "
                f"unsafe_threshold <= 1, not {self.clean_threshold}, {self.unsure_threshold}, "
                f"{self.unsafe_threshold}"
            )


@dataclass(frozen=True)
class RolloutConfig:
    """How images are collected.

    Args:
        rollout_batch_size: images an iteration.
        samples_per_caption: images of each caption; divides `rollout_batch_size`.
        dtype: of the weights and caches that images are sampled with. Default float32, the trained weights
            themselves. "bfloat16" halves what a GPU reads for each token; the images are then drawn by a
            slightly different policy (`sampler_log_prob_gap`), which `ppo.importance_cap` corrects for.
        memory_gb: for what sampling and decoding hold beside the weights; batches that need more are drawn in
            parts, also in evaluations. Default null, no bound. Set it when drawing runs out of memory.
    """

    rollout_batch_size: int = 96
    samples_per_caption: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "rollout", "rollout_batch_size", "samples_per_caption")
        _positive(self, "rollout", "memory_gb")
        if self.rollout_batch_size % self.samples_per_caption:
            raise ValueError(
                f"rollout.rollout_batch_size is {self.rollout_batch_size}; it must be a multiple of "
                f"rollout.samples_per_caption = {self.samples_per_caption}"
            )


@dataclass(frozen=True)
class PpoConfig:
    """The policy's update.

    Of each setting: its default, where it comes from, and when to change it.

    Args:
        learning_rate: of the actor. Default 2.5e-3, measured for "cross_keys_values" of the built-in world
            (benchmarks/RESULTS.md). Lower it tenfold for all weights or large models, and when `kl` jumps.
        warmup_iterations: linear warm-up of both learning rates. Default 5; Adam's second moments are
            estimates of a few batches until then (arXiv 1910.04209). More with more weights.
        schedule: of both learning rates after the warm-up: "linear" decay to zero at `num_iterations`, or
            "constant". Default linear (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/,
            detail 4). Use constant where a run shall be prolonged.
        epochs: passes over each batch. Default 1, measured on the built-in world (benchmarks/RESULTS.md); up
            to 4 are usual (arXiv 1707.06347, arXiv 2006.05990). More get more out of costly images, until
            `clip_fraction` passes 0.3.
        minibatch_size: images an optimiser step. Default 24, a quarter of the batch as in arXiv 1707.06347's
            code. Larger steps are less noisy and fewer.
        microbatch_size: images a forward pass. Default 24; changes memory, not numbers (docs/algorithm.md).
            Lower it when memory runs out.
        objective: "clip" is PPO's (arXiv 1707.06347), "score_function" REINFORCE's and DDPO_SF's (arXiv
            2305.13301), for one epoch of one minibatch. Default clip. Change it to see what the ratio buys.
        advantage: "gae" with the critic (arXiv 1506.02438); without one "rloo" (arXiv 2402.14740) and
            "group" (GRPO's, arXiv 2402.03300), for several images a caption, or "per_prompt" (arXiv
            2305.13301), for captions that come again. Default gae. Change it where a critic does not fit
            into memory.
        prompt_buffer_size: scores that "per_prompt" keeps of each caption. Default 32, our own, twice that of
            https://github.com/kvablack/ddpo-pytorch. Less where the policy changes fast.
        prompt_min_count: a caption with fewer scores is compared with the whole batch. Default 16, as in
            https://github.com/kvablack/ddpo-pytorch. Less where captions come again seldom.
        recompute_log_probs: old log-probs come from the training forward, not from the sampler, whose cache
            rounds differently. Default true (docs/algorithm.md); then the first ratio is 1. Off shows what
            the rounding does.
        clip_range: lower clip of the ratio, and upper unless `clip_range_high` is set. Default 0.2 (arXiv
            1707.06347). Lower it when `approx_kl` jumps.
        clip_range_high: upper clip; null is `clip_range`. Default null; 0.28 (arXiv 2503.14476) lets
            unlikely codes grow where entropy falls too fast.
        dual_clip: bound on the loss at negative advantages, in advantages; null is none. Default 3.0 (arXiv
            1912.09729). Off for PPO as published.
        max_log_ratio: log-ratios are clamped to plus and minus it. Default 20.0 (as in
            https://github.com/volcengine/verl); there it only keeps numbers finite. No reason to change it.
        gamma: discount. Default 1.0: an image has one score, at its end (arXiv 1909.08593). Lower values
            discount the score away from the first tokens.
        gae_lambda: of GAE (arXiv 1506.02438). Default 1.0: over 64 or 256 tokens, 0.95 hides the score from
            the first tokens until the critic is good (docs/algorithm.md). Lower it when
            `explained_variance` is near 1.
        whiten_advantages: to mean 0 and standard deviation 1 over the whole batch. Default true (arXiv
            1909.08593's code). Off for advantages in units of the score.
        advantage_clip: bound on whitened advantages; null is none. Default 5.0, our own: one image of 30
            below the mean must not be the whole gradient. Off for an unbiased gradient (docs/algorithm.md).
        normalise_scores: divide scores by their running standard deviation. Default true (arXiv 2006.05990,
            with the mean left to the baseline). Off for a KL weight in raw scores.
        entropy_coef: weight of the entropy bonus, per token. Default -0.28, measured on the built-in world
            (benchmarks/RESULTS.md); 0 is usual. Below 0 it is a penalty: with the exact KL in
            the loss, what the reward does not care about is then held not where the reference had it but at
            that distribution to the power kl_coef / (kl_coef + entropy_coef). The noise of the gradient
            flattens the policy, so that it draws more by mistake; this takes it back without noise. The sum
            of both must be above 0. Set it to 0 with another kl.kl_coef or kl.placement, or with kl.target.
        max_grad_norm: the actor's gradient is clipped to it. Default 1.0 (arXiv 2006.05990 finds 0.5 to 1).
            Lower it when single batches throw the policy off.
        target_kl: stop an iteration's updates when KL(old, new) exceeds it, in nats a token; null is never.
            Default null (https://github.com/openai/spinningup has 0.01). Set it with many epochs.
        importance_cap: weight tokens by the training forward over the sampler, truncated here; null is off.
            Default null; 2.0 is usual (https://fengyao.notion.site/off-policy-rl). Set it when
            `sampler_log_prob_gap` is large, as with low-precision sampling.
        weight_decay: of the actor's AdamW (arXiv 1711.05101). Default 0.0: the KL holds the policy, zero is
            not where it comes from. Set it for very long runs.
        adam_eps: of the actor's AdamW. Default 1e-5 (detail 3 of
            https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/). Larger damps weights
            with hardly any gradient.
        trainable: which of the actor's weights are trained. Default cross_keys_values, what image tokens get
            to read of the caption: it gets the most of the reward's signal through the noise of its gradient
            (benchmarks/RESULTS.md), and so loses least of what the model can draw. "cross_attention" is all
            of those blocks; "all" the whole decoder, for rewards that captions say nothing about.
        bad_step: what a loss or gradient that is not finite does. "skip" leaves the step out and counts it
            in `skipped_updates`; "stop" ends the iteration and the run, with a checkpoint. An iteration
            without one good step stops the run either way. Default skip (as loss scaling does, arXiv
            1710.03740). Use stop to look into it.
        min_entropy: a policy with less entropy, in nats an image, has collapsed: the run stops, with a
            checkpoint; null is never. Default 1.0, our own: next to nothing is left to chance in a whole
            image (docs/metrics.md). Raise it to stop earlier.
    """

    learning_rate: float = 2.5e-3
    warmup_iterations: int = 5
    schedule: Literal["linear", "constant"] = "linear"
    epochs: int = 1
    minibatch_size: int = 24
    microbatch_size: int = 24
    objective: Literal["clip", "score_function"] = "clip"
    advantage: Literal["gae", "rloo", "group", "per_prompt"] = "gae"
    prompt_buffer_size: int = 32
    prompt_min_count: int = 16
    recompute_log_probs: bool = True
    clip_range: float = 0.2
    clip_range_high: float | None = None
    dual_clip: float | None = 3.0
    max_log_ratio: float = 20.0
    gamma: float = 1.0
    gae_lambda: float = 1.0
    whiten_advantages: bool = True
    advantage_clip: float | None = 5.0
    normalise_scores: bool = True
    entropy_coef: float = -0.28
    max_grad_norm: float = 1.0
    target_kl: float | None = None
    importance_cap: float | None = None
    weight_decay: float = 0.0
    adam_eps: float = 1e-5
    trainable: Literal["cross_keys_values", "cross_attention", "all"] = "cross_keys_values"
    bad_step: Literal["skip", "stop"] = "skip"
    min_entropy: float | None = 1.0

    def __post_init__(self) -> None:
        _at_least_one(self, "ppo", "epochs", "minibatch_size", "microbatch_size", "prompt_min_count")
        _not_negative(self, "ppo", "learning_rate", "warmup_iterations", "weight_decay")
        _positive(self, "ppo", "max_grad_norm", "adam_eps", "clip_range_high", "advantage_clip")
        _positive(self, "ppo", "target_kl", "importance_cap", "max_log_ratio", "min_entropy")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo.{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if not 0 < self.clip_range < 1:
            raise ValueError(f"ppo.clip_range is {self.clip_range}; it must lie between 0 and 1")
        upper = self.clip_range if self.clip_range_high is None else self.clip_range_high
        if self.dual_clip is not None and self.dual_clip <= 1 + upper:
            raise ValueError(
                f"ppo.dual_clip is {self.dual_clip}; it must exceed 1 + the upper clip range = {1 + upper}, "
                "or be null"
            )
        if self.prompt_min_count > self.prompt_buffer_size:
            raise ValueError(
                f"ppo.prompt_min_count is {self.prompt_min_count}; it must be at most "
                f"ppo.prompt_buffer_size = {self.prompt_buffer_size}, or no caption would ever have enough"
            )
        if self.importance_cap is not None and not self.recompute_log_probs:
            raise ValueError(
                f"ppo.importance_cap is {self.importance_cap}; with ppo.recompute_log_probs false there is "
                "nothing to correct for: set it to null"
            )


@dataclass(frozen=True)
class KlConfig:
    """The penalty for leaving the reference.

    Of each setting: its default, where it comes from, and when to change it.

    Args:
        kl_coef: its weight, in normalised score a nat. Default 0.34, measured on the built-in world
            (benchmarks/RESULTS.md). Raise it when pictures lose what they had, lower it when the reward
            stalls; `kl_coef_raw` is the same in units of the score.
        estimator: "k1", "k2" or "exact" (http://joschu.net/blog/kl-approx.html). Default exact, over all
            codes: it has no action noise and holds every choice that the reward does not care about where
            it was. Use k1 to charge tokens for KL that they cause later.
        placement: "reward" (k1) or "loss" (k2, exact); other combinations have the wrong gradient and are
            refused (arXiv 2506.09477). In the loss, no token is charged for KL that it causes later. Default
            loss, measured (benchmarks/RESULTS.md); reward is the usual one (arXiv 1909.08593).
        target: nats an image to steer the coefficient to; null keeps it fixed. Default null. Set it (arXiv
            1909.08593) where the distance is known that is wanted, and not its price.
        horizon: images over which the coefficient adapts. Default 5000, half of arXiv 1909.08593's. More is
            steadier.
        error_clip: relative distance from the target that one batch acts on at most. Default 0.2 (arXiv
            1909.08593). No reason to change it.
        max_kl: a policy further from the reference, in nats an image, has collapsed: the run stops, with a
            checkpoint; null is never. Default 100.0: good runs of the built-in world end below 35, and
            without a penalty near-identical pictures were at 177 (docs/metrics.md). Raise it for images of
            more tokens.
    """

    kl_coef: float = 0.34
    estimator: Literal["k1", "k2", "k3", "exact"] = "exact"
    placement: Literal["reward", "loss"] = "loss"
    target: float | None = None
    horizon: int = 5000
    error_clip: float = 0.2
    max_kl: float | None = 100.0

    def __post_init__(self) -> None:
        check_kl_placement(self.estimator, self.placement)
        _not_negative(self, "kl", "kl_coef")
        _positive(self, "kl", "target", "error_clip", "max_kl")
        if self.target is not None and not self.kl_coef > 0:
            raise ValueError(f"kl.kl_coef is {self.kl_coef}; with kl.target it must start above 0")


@dataclass(frozen=True)
class CriticConfig:
    """The critic: a network of its own with an optimiser of its own, used by the "gae" advantage.

    Its trunk starts as a copy of the policy's, its head at zero. Of each setting: its default, where it
    comes from, and when to change it.

    Args:
        learning_rate: of the critic; warms up and decays as the actor's does. Default 1e-3, measured on the
            built-in world (benchmarks/RESULTS.md). Raise it when `explained_variance` stays low.
        max_grad_norm: its gradient is clipped to it, apart from the actor's. Default 1.0 (arXiv 2006.05990):
            under a joint clip the critic starves the actor. Raise it when the norm is always above.
        warmup_iterations: first iterations that train the critic alone. Default 0; 5 to 20 are usual where a
            critic must be good at once (arXiv 2503.01491). Set it with `ppo.gae_lambda` below 1.
        value_clip: bound on the move of a value in one iteration, in units of normalised returns; null is
            none. Default null: it does not help (arXiv 2006.05990); 0.2 to 0.5 is PPO's code.
        weight_decay: of the critic's AdamW (arXiv 1711.05101). Default 0.0. Set it when the critic knows its
            batches by heart: `explained_variance` falls while `value_loss` does.
        adam_eps: of the critic's AdamW. Default 1e-5, as the actor's
            (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, detail 3).
    """

    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0
    warmup_iterations: int = 0
    value_clip: float | None = None
    weight_decay: float = 0.0
    adam_eps: float = 1e-5

    def __post_init__(self) -> None:
        _not_negative(self, "critic", "learning_rate", "warmup_iterations", "weight_decay")
        _positive(self, "critic", "max_grad_norm", "value_clip", "adam_eps")


@dataclass(frozen=True)
class EvaluationConfig:
    """Policy against reference on held-out captions, with the same noise.

    Args:
        at_end: evaluate when training ends.
        num_captions: captions drawn with the mix of `captions.shares`.
        samples_per_caption: images of each.
        batch_size: images drawn together; an interrupted evaluation goes on with the next batch.
        seed: of captions and noise; never the training's.
        heldout_clip: a second CLIP that no reward sees, as {model, pretrained}; its similarity tells a gain
            from a fooled CLIP where there is no judge. null is none.
        heldout_detector: a detector on `heldout_clip`: laion-l14, laion-b32, or a file that
            `converters/keras_nsfw_to_torch.py` wrote; null is none.
    """

    at_end: bool = True
    num_captions: int = 2000
    samples_per_caption: int = 2
    batch_size: int = 200
    seed: int = 12345
    heldout_clip: ClipConfig | None = None
    heldout_detector: str | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "evaluation", "num_captions", "samples_per_caption", "batch_size")
        _not_negative(self, "evaluation", "seed")
        if self.heldout_detector is not None and self.heldout_clip is None:
            raise ValueError(
                f"evaluation.heldout_detector is {self.heldout_detector}; it reads embeddings of "
                "evaluation.heldout_clip, so name that, too"
            )


@dataclass(frozen=True)
class Config:
    """All settings of a training run.

    Args:
        run_dir: the run's folder; null names one by date and time under `runs`.
        seed: of everything random in training.
        num_iterations: iterations of collect, score, update.
        checkpoint_every: iterations between checkpoints; the last iteration always writes one.
        keep_checkpoints: how many of them to keep.
        device: "auto", "cpu", "cuda" or "cuda:0".
        model: the model that is trained.
        policy: how it samples; part of the policy and saved with it.
        captions: the prompts.
        rollout: how many images an iteration.
        clip: the CLIP behind the reward.
        reward: the reward.
        ppo: the actor's update.
        kl: the penalty for leaving the reference.
        critic: the critic.
        evaluation: the evaluation at the end.
    """

    run_dir: str | None = None
    seed: int = 0
    num_iterations: int = 85
    checkpoint_every: int = 20
    keep_checkpoints: int = 2
    device: str = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    policy: PolicySettings = field(default_factory=PolicySettings)
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    kl: KlConfig = field(default_factory=KlConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _at_least_one(self, "", "num_iterations", "checkpoint_every", "keep_checkpoints")
        _not_negative(self, "", "seed")
        if self.policy.top_k is not None:
            raise ValueError(
                f"policy.top_k is {self.policy.top_k}; training needs null: a sampled token could leave the "
                "support and its log-prob become -inf. generate takes --top_k"
            )
        if self.ppo.objective == "score_function" and (self.ppo.epochs > 1 or self.minibatches > 1):
            raise ValueError(
                f"ppo.objective score_function needs ppo.epochs 1 and ppo.minibatch_size "
                f"{self.rollout.rollout_batch_size}: after one step the batch is no longer the policy's own"
            )
        if self.ppo.advantage in ("rloo", "group") and self.rollout.samples_per_caption < 2:
            raise ValueError(
                f"ppo.advantage {self.ppo.advantage} compares images of one caption; "
                "set rollout.samples_per_caption to at least 2"
            )
        self._check_entropy_penalty()
        if self.rollout.rollout_batch_size % self.ppo.minibatch_size:
            raise ValueError(
                f"ppo.minibatch_size is {self.ppo.minibatch_size}; it must divide "
                f"rollout.rollout_batch_size = {self.rollout.rollout_batch_size}"
            )
        largest_step = self.kl.error_clip * self.rollout.rollout_batch_size
        if self.kl.target is not None and largest_step >= self.kl.horizon:
            raise ValueError(
                f"kl.horizon is {self.kl.horizon} images; it must exceed kl.error_clip * "
                f"rollout.rollout_batch_size = {largest_step:g}, or one batch could turn kl_coef negative"
            )

    def _check_entropy_penalty(self) -> None:
        """What holds a policy against an entropy penalty is the KL: without enough of it, every token becomes
        certain whatever the reward."""
        entropy_coef, kl = self.ppo.entropy_coef, self.kl
        if entropy_coef >= 0:
            return
        if kl.kl_coef + entropy_coef <= 0:
            raise ValueError(
                f"kl.kl_coef is {kl.kl_coef:g} and ppo.entropy_coef {entropy_coef:g}; their sum must be "
                "above 0, or nothing holds the policy's entropy: set ppo.entropy_coef to 0"
            )
        if kl.target is not None:
            raise ValueError(
                f"kl.target is {kl.target:g}: it moves kl.kl_coef, which a ppo.entropy_coef below 0 "
                f"({entropy_coef:g}) needs to stay above it; set ppo.entropy_coef to 0"
            )

    @property
    def minibatches(self) -> int:
        """Optimiser steps an epoch."""
        return self.rollout.rollout_batch_size // self.ppo.minibatch_size

    @property
    def captions_per_iteration(self) -> int:
        return self.rollout.rollout_batch_size // self.rollout.samples_per_caption


def _at_least_one(config: Any, prefix: str, *names: str) -> None:
    _refuse(config, prefix, names, lambda value: value >= 1, "be at least 1")


def _not_negative(config: Any, prefix: str, *names: str) -> None:
    _refuse(config, prefix, names, lambda value: 0 <= value < math.inf, "be 0 or a positive number")


def _positive(config: Any, prefix: str, *names: str) -> None:
    """None passes: it switches a setting off."""
    _refuse(config, prefix, names, lambda value: value is None or 0 < value < math.inf, "be above 0")


def _refuse(config: Any, prefix: str, names: tuple[str, ...], fits: Callable[[Any], bool], rule: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not fits(value):
            dotted = f"{prefix}.{name}" if prefix else name
            raise ValueError(f"{dotted} is {value}; it must {rule}")


def parse_command_line(
    argv: list[str] | None, prog: str, description: str, flags: dict[str, str] | None = None
) -> tuple[Config, dict[str, bool]]:
    """Reads `--config FILE`, dotted overrides and bare flags.

    Args:
        argv: arguments; None is the process's.
        prog: shown in help.
        description: shown in help.
        flags: names of bare flags with their help, such as `resume`.

    Returns:
        The configuration, and which flags were given.

    Raises:
        ValueError: for an unknown key (the nearest is offered) or a value of the wrong kind.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings")
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(Config)
    try:
        parsed: Namespace = parser.parse_args(argv)
        given = {name: bool(parsed.pop(name)) for name in flags or {}}
        parsed.pop("config", None)
        return Config(**vars(parser.instantiate(parsed))), given
    except ArgumentError as error:
        raise ValueError(_explain(str(error))) from None


def _explain(message: str) -> str:
    """One line of a parser's message, with the nearest setting where a key is unknown."""
    line = " ".join(message.split())
    group = re.search(r"Group '([\w.]+)' does not accept", line)
    unknown = re.search(
        r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'"
        r"|Option '([\w.]+)' is not accepted",
        line,
    )
    if unknown is None or "class_path" in line:
        return line
    key = (f"{group.group(1)}." if group else "") + next(filter(None, unknown.groups()))
    near = difflib.get_close_matches(key, setting_names(), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "--help lists all settings"
    return f"unknown setting {key}; {hint}"


def setting_names(config_class: type = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    names = []
    for f in fields(config_class):
        names.append(prefix + f.name)
        if is_dataclass(f.type):
            names += setting_names(f.type, f"{prefix}{f.name}.")
    return names


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path) -> Config:
    """Reads the settings that a run saved.

    Raises:
        ValueError: naming the file, if it is absent or does not fit.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; is its folder a run of dalle_ppo.train?")
    try:
        return parse_command_line(["--config", str(path)], "config", "")[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class OneLineParser(argparse.ArgumentParser):
    """argparse, with a user's mistake as a ValueError that `run_main` prints, instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the options")


def run_main(main: Callable[[list[str] | None], int]) -> None:
    """Runs a command line: a user's error or an unusable file becomes one line and exit code 2."""
    try:
        sys.exit(main(None))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
