"""Settings of the update: the actor's, the KL's and the critic's."""

from dataclasses import dataclass
from typing import Literal

from dalle_ppo.base.checks import at_least_one, not_negative, positive
from dalle_ppo.rl.kl_placement import check_kl_placement


@dataclass(frozen=True)
class PpoConfig:
    """The policy's update.

    Of each setting: its default, where it comes from, and when to change it.

    Args:
        learning_rate: of the actor. Default 3e-3, measured for "cross_keys_values" of the built-in world
            (benchmarks/RESULTS.md). Lower it tenfold for all weights or large models, and when `kl` jumps.
        warmup_iterations: linear warm-up of both learning rates. Default 5; Adam's second moments are
            estimates of a few batches until then (arXiv 1910.04209). More with more weights.
        schedule: of both learning rates, times the warm-up: "linear" falls from the first iteration to zero
            at `num_iterations`, "constant" does not. Default linear (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/,
            detail 4). Use constant where a run shall be prolonged.
        epochs: passes over each batch. Default 1, measured on the built-in world (benchmarks/RESULTS.md); up
            to 4 are usual (arXiv 1707.06347, arXiv 2006.05990). More get more out of costly images, until
            `clip_fraction` passes 0.3.
        minibatch_size: images an optimiser step. Default 24, a quarter of the batch as in arXiv 1707.06347's
            code. Larger steps are less noisy and fewer: raise it when `gradient_norm` is
            mostly noise.
        microbatch_size: images a forward pass. Default 24, our own; changes memory, not numbers. Lower
            it when memory runs out.
        objective: "clip" is PPO's (arXiv 1707.06347), "score_function" REINFORCE's and DDPO_SF's (arXiv
            2305.13301), for one epoch of one minibatch. Default clip. Change it to see what the ratio buys.
        advantage: "gae" with the critic (arXiv 1506.02438); without one "rloo" (arXiv 2402.14740) and
            "group" (GRPO's, arXiv 2402.03300), for several images a caption, or "per_prompt" (arXiv
            2305.13301), for captions that come again. Default gae: on the built-in world safer and more
            faithful than rloo (benchmarks/RESULTS.md). Change it where a critic does not fit into memory.
        prompt_buffer_size: scores that "per_prompt" keeps of each caption. Default 32, our own, twice that of
            https://github.com/kvablack/ddpo-pytorch. Less where the policy changes fast.
        prompt_min_count: a caption with fewer scores is compared with the whole batch. Default 16, as in
            https://github.com/kvablack/ddpo-pytorch. Less where captions come again seldom.
        recompute_log_probs: old log-probs come from the training forward, not from the sampler, whose cache
            rounds differently. Default true
            (https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo); then the first ratio
            is 1. Off shows what the rounding does.
        clip_range: lower clip of the ratio, and upper unless `clip_range_high` is set. Default 0.2 (arXiv
            1707.06347). Lower it when `approx_kl` jumps.
        clip_range_high: upper clip; null is `clip_range`. Default null; 0.28 (arXiv 2503.14476) lets
            unlikely codes grow. Set it where entropy falls too fast.
        dual_clip: bound on the loss at negative advantages, in advantages; null is none. Default 3.0 (arXiv
            1912.09729). Off for PPO as published.
        max_log_ratio: log-ratios are clamped to plus and minus it. Default 20.0 (as in
            https://github.com/volcengine/verl); there it only keeps numbers finite. No reason to change it.
        gamma: discount, of "gae" only. Default 1.0: an image has one score, at its end (arXiv 1909.08593).
            Lower values discount the score away from the first tokens: no reason to change it.
        gae_lambda: of "gae" only (arXiv 1506.02438). Default 1.0: over 64 or 256 tokens, 0.95 hides the score
            from the first tokens until the critic is good. Lower it when `explained_variance` is near 1.
        whiten_advantages: to mean 0 and standard deviation 1 over the whole batch. Default true (arXiv
            1909.08593's code). Off for advantages in units of the score.
        advantage_clip: bound on whitened advantages; null is none. Default 5.0 (as in
            https://github.com/kvablack/ddpo-pytorch): one image of 30 below the mean must not be the whole
            gradient. Off for an unbiased gradient.
        normalise_scores: divide scores by their running standard deviation. Default true (arXiv 2006.05990,
            with the mean left to the baseline). Off, as `whiten_advantages`, for a KL weight in raw scores.
        entropy_coef: weight of the entropy bonus, per token. Default -0.215, measured on the built-in world
            (benchmarks/RESULTS.md); 0 is usual. Below 0 it is a penalty: with the exact KL in
            the loss, what the reward does not care about is then held not where the reference had it but at
            that distribution to the power kl_coef / (kl_coef + entropy_coef). The noise of the gradient
            flattens the policy, so that it draws more by mistake; this takes it back without noise. The sum
            of both must be above 0. Set it to 0 with another kl.kl_coef or kl.placement, or with kl.target.
        max_grad_norm: the actor's gradient is clipped to it. Default 1.0 (arXiv 2006.05990 finds 0.5 to 1).
            Lower it when single batches throw the policy off.
        target_kl: the policy's updates of an iteration end before a step, other than the first, whose
            minibatch has a KL(old, new) above it, in nats a token; the critic's go on; null is never. Default
            null (https://github.com/openai/spinningup has 0.01, times 1.5). Set it with many epochs.
        importance_cap: weight tokens by the training forward over the sampler, truncated here; null is off.
            Default null; 2.0 is usual (https://fengyao.notion.site/off-policy-rl). Set it when
            `sampler_log_prob_gap` is large, as with low-precision sampling.
        weight_decay: of the actor's AdamW (arXiv 1711.05101). Default 0.0: the KL holds the policy, zero is
            not where it comes from. Set it for very long runs.
        adam_eps: of the actor's AdamW. Default 1e-5 (detail 3 of
            https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/). Raise it when weights
            with hardly any gradient move too much.
        trainable: which of the actor's weights are trained. Default cross_keys_values, what image tokens get
            to read of the caption: it gets the most of the reward's signal through the noise of its gradient
            (benchmarks/RESULTS.md), and so loses least of what the model can draw. "cross_attention" is all
            of those blocks. Use "all", the whole decoder, for rewards that captions say nothing about.
        bad_step: what a loss or gradient that is not finite does. "skip" leaves the step out and counts it
            in `skipped_updates`; "stop" ends the iteration and the run, with a checkpoint. An iteration
            without one good step stops the run either way. Default skip (as loss scaling does, arXiv
            1710.03740). Use stop to look into it.
        min_entropy: a policy with less entropy, in nats an image, has collapsed: the run stops, with a
            checkpoint; null is never. Default 1.0, our own: next to nothing is left to chance in a whole
            image. Raise it to stop earlier.
    """

    learning_rate: float = 3e-3
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
    entropy_coef: float = -0.215
    max_grad_norm: float = 1.0
    target_kl: float | None = None
    importance_cap: float | None = None
    weight_decay: float = 0.0
    adam_eps: float = 1e-5
    trainable: Literal["cross_keys_values", "cross_attention", "all"] = "cross_keys_values"
    bad_step: Literal["skip", "stop"] = "skip"
    min_entropy: float | None = 1.0

    def __post_init__(self) -> None:
        at_least_one(self, "ppo", "epochs", "minibatch_size", "microbatch_size", "prompt_min_count")
        not_negative(self, "ppo", "learning_rate", "warmup_iterations", "weight_decay")
        positive(self, "ppo", "max_grad_norm", "adam_eps", "clip_range_high", "advantage_clip")
        positive(self, "ppo", "target_kl", "importance_cap", "max_log_ratio", "min_entropy")
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
        kl_coef: its weight a nat, in units of the advantages if in the loss, else of the normalised score.
            Default 0.26, measured on the built-in world (benchmarks/RESULTS.md). Raise it when pictures lose
            what they had, lower it when the reward stalls; `kl_coef_raw` is the same in units of the score.
        estimator: "k1", "k2" or "exact" (http://joschu.net/blog/kl-approx.html). Default exact, over all
            codes: it has no action noise and holds every choice that the reward does not care about where
            it was. Use k1 to charge tokens for KL that they cause later.
        placement: "reward" (k1) or "loss" (k2, exact); other combinations have the wrong gradient and are
            refused (arXiv 2506.09477). In the loss, no token is charged for KL that it causes later. Default
            loss, our own; reward is the usual one (arXiv 1909.08593). Use reward where early tokens should
            pay for what they lead to, or to compare with others.
        target: nats an image to steer the coefficient to; null keeps it fixed. Default null. Set it (arXiv
            1909.08593) where the distance is known that is wanted, and not its price.
        horizon: images over which the coefficient adapts. Default 5000, half of arXiv 1909.08593's. More is
            steadier.
        error_clip: relative distance from the target that one batch acts on at most. Default 0.2 (arXiv
            1909.08593). No reason to change it.
        max_kl: a policy further from the reference, in nats an image, has collapsed: the run stops, with a
            checkpoint; null is never. Default 100.0, our own: far above what good runs of the built-in
            world reach (benchmarks/RESULTS.md). Raise it for images of
            more tokens.
    """

    kl_coef: float = 0.26
    estimator: Literal["k1", "k2", "k3", "exact"] = "exact"
    placement: Literal["reward", "loss"] = "loss"
    target: float | None = None
    horizon: int = 5000
    error_clip: float = 0.2
    max_kl: float | None = 100.0

    def __post_init__(self) -> None:
        check_kl_placement(self.estimator, self.placement)
        not_negative(self, "kl", "kl_coef")
        positive(self, "kl", "target", "error_clip", "max_kl")
        if self.target is not None and not self.kl_coef > 0:
            raise ValueError(f"kl.kl_coef is {self.kl_coef}; with kl.target it must start above 0")


@dataclass(frozen=True)
class CriticConfig:
    """The critic: a network of its own with an optimiser of its own, used by the "gae" advantage.

    Its trunk starts as a copy of the policy's, its head at zero. Of each setting: its default, where it
    comes from, and when to change it.

    Args:
        learning_rate: of the critic; warms up and decays as the actor's does. Default 1e-3, our own, for
            the built-in world. Raise it when `explained_variance` stays low.
        max_grad_norm: its gradient is clipped to it, apart from the actor's. Default 1.0 (arXiv 2006.05990):
            under a joint clip the critic starves the actor. Raise it when the norm is always above.
        warmup_iterations: first iterations that train the critic alone. Default 0; 5 to 20 are usual where a
            critic must be good at once (arXiv 2503.01491). Set it with `ppo.gae_lambda` below 1.
        value_clip: bound on the move of a value in one iteration, in units of normalised returns; null is
            none. Default null: it does not help (arXiv 2006.05990); 0.2 to 0.5 is PPO's code.
            Set it to compare with that.
        weight_decay: of the critic's AdamW (arXiv 1711.05101). Default 0.0. Set it when the critic knows its
            batches by heart: `explained_variance` falls while `value_loss` does.
        adam_eps: of the critic's AdamW. Default 1e-5, as the actor's
            (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, detail 3). Raise it as
            the actor's.
    """

    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0
    warmup_iterations: int = 0
    value_clip: float | None = None
    weight_decay: float = 0.0
    adam_eps: float = 1e-5

    def __post_init__(self) -> None:
        not_negative(self, "critic", "learning_rate", "warmup_iterations", "weight_decay")
        positive(self, "critic", "max_grad_norm", "value_clip", "adam_eps")
