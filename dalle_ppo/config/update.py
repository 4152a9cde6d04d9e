"""Settings of the update: how a batch is split into optimiser steps, and when steps are skipped."""

from dataclasses import dataclass
from typing import Literal

from dalle_ppo.base.checks import at_least_one, positive


@dataclass(frozen=True)
class UpdateConfig:
    """How the optimiser steps of an iteration are made; used by every objective."""

    epochs: int = 1
    """Passes over each batch. Default 1, measured on the built-in world (benchmarks/RESULTS.md); up to 4 is
    usual (arXiv 1707.06347, arXiv 2006.05990). Raise it to get more out of costly images, until
    `clip_fraction` passes 0.3."""
    minibatch_size: int | None = 24
    """Images per optimiser step; null is the whole batch. Default 24, a quarter of the batch, as in the code
    of arXiv 1707.06347. Raise it when `gradient_norm` is mostly noise: steps become fewer and less noisy."""
    microbatch_size: int = 24
    """Images per forward pass. Default 24, our own. It changes memory use, not the result. Lower it when
    memory runs out."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the products in scoring and learning. "bfloat16" keeps weights, optimiser, norms, head
    and log-softmax in float32 (torch's autocast). Default float32, our own: CPUs without bfloat16 products
    are slower with it. Use it on a GPU, with `update.importance_cap` 2: the scores then round differently
    from the sampler's (docs/large_models.md says how much)."""
    gradient_checkpointing: bool = False
    """Keep only the input of each decoder layer, and compute the rest again in the backward pass (arXiv
    1604.06174): much less memory, the same numbers, a third more time in the update. Default false, our own.
    Set it when memory runs out at a `microbatch_size` of 1, or to make microbatches larger."""
    logits_chunk: int | Literal["auto"] | None = None
    """Tokens whose logits over all codes exist at a time, in scoring and update; their gradient computes
    them again. "auto" is as many as make 2^23 logits, 512 tokens with 16384 codes; null is all tokens of a
    microbatch. Results are equal within rounding. Default null, our own. Set it when memory runs out and the
    model has many codes; `--dry_run` says what the logits take."""
    shard: Literal["none", "full"] = "none"
    """How several processes hold actor, reference and critic. "none": each holds all of them. "full": each
    holds a part of every matrix, with its gradient and optimiser state, and a decoder layer is put together
    while it computes (torch's FSDP2, arXiv 2304.11277); drawing needs one whole copy of the actor besides. A
    single process holds everything. Default none, our own: it exchanges less. Use full when memory runs
    out (docs/scaling.md)."""
    recompute_log_probs: bool = True
    """Take the old log-probs from the training forward pass rather than from the sampler, whose cache rounds
    differently. Default true (https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo): the
    first ratio is then 1, except for replayed images, and only up to rounding where an objective chooses
    images after scoring. Use false to save the policy's pass in scoring: one process in float32 then takes
    KL and entropy from the sampler's states too, and the first ratio is 1 up to their rounding."""
    importance_cap: float | None = None
    """Weight each token by its probability in the training forward pass divided by that in the sampler,
    capped at this value; null is off. Default null; 2.0 is usual
    (https://fengyao.notion.site/off-policy-rl). Set it when `sampler_log_prob_gap` is large, as it is with
    low-precision sampling."""
    target_kl: float | None = None
    """The policy stops learning from a batch before a step whose minibatch has a KL(old, new) above this, in
    nats per token. The first step is always made, and the critic keeps learning. null never stops. Default
    null; https://github.com/openai/spinningup uses 1.5 times 0.01. Set it with many epochs."""
    bad_step: Literal["skip", "stop"] = "skip"
    """What happens when a loss or gradient is not finite. "skip" leaves the step out and counts it in
    `skipped_updates`; "stop" ends the run, with a checkpoint. Either way, an iteration without a single good
    step ends the run. Default skip, as in loss scaling (arXiv 1710.03740). Use stop to find the cause."""

    def __post_init__(self) -> None:
        at_least_one(self, "update", "epochs", "minibatch_size", "microbatch_size")
        if self.logits_chunk != "auto":
            at_least_one(self, "update", "logits_chunk")
        positive(self, "update", "target_kl", "importance_cap")
        if self.importance_cap is not None and not self.recompute_log_probs:
            raise ValueError(
                f"update.importance_cap is {self.importance_cap}; with update.recompute_log_probs false "
                "there is nothing to correct for: set it to null"
            )
