"""Settings of the actor: which weights are trained, and how large a step they take."""

from dataclasses import dataclass
from typing import Literal

from dalle_ppo.base.checks import at_least_one, not_negative, positive


@dataclass(frozen=True)
class ActorConfig:
    """The policy's weights and optimiser; used by every objective."""

    learning_rate: float = 3e-3
    """The actor's peak learning rate. Default 3e-3, measured on the built-in world with trainable
    cross_keys_values (benchmarks/RESULTS.md). Lower it tenfold for all weights or for large models, and
    whenever `kl` jumps."""
    warmup_iterations: int = 5
    """Iterations over which both learning rates, the actor's and the critic's, rise linearly to their peak.
    Default 5: until then Adam's second moments rest on a handful of batches (arXiv 1910.04209). Raise it when
    you train more weights."""
    schedule: Literal["linear", "constant"] = "linear"
    """How both learning rates change after the warm-up. "linear" falls to zero at `num_iterations`, starting
    at the first iteration; "constant" stays. Default linear, detail 4 of
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/. Use constant if you may want to
    extend the run later."""
    trainable: Literal["cross_keys_values", "cross_attention", "all"] = "cross_keys_values"
    """Which weights are trained. "cross_keys_values" trains the keys and values through which image tokens
    read the caption, "cross_attention" the whole of those blocks, "all" the whole decoder. Default
    cross_keys_values: its gradient has the best ratio of signal to noise, so the model forgets least about
    how to draw (benchmarks/RESULTS.md). Use all for rewards that have nothing to do with the caption."""
    adapter: Literal["none", "lora"] = "none"
    """How the weights that `actor.trainable` names are trained. "none" trains them directly. "lora" freezes
    them and trains two small matrices beside each matrix of the decoder's layers (arXiv 2106.09685); norms,
    embeddings and the head stay frozen, and the reference needs no memory of its own. It needs the extra
    lora. Default none, our own: the built-in world's model is small. Use lora when memory is short."""
    lora_rank: int = 8
    """Columns of each of LoRA's small matrices. Default 8, as in peft
    (https://huggingface.co/docs/peft/package_reference/lora). Raise it when the reward stays below what
    adapter none reaches."""
    lora_alpha: float = 16.0
    """LoRA's change of a weight is scaled by `lora_alpha` / `lora_rank`. Default 16.0, our own, twice the
    rank. Change it together with the rank, as the learning rate depends on their ratio."""
    max_grad_norm: float = 1.0
    """The actor's gradient is scaled down to this norm. Default 1.0; 0.5 to 1 works best in arXiv 2006.05990.
    Lower it when single batches throw the policy off."""
    weight_decay: float = 0.0
    """Weight decay of the actor's AdamW (arXiv 1711.05101). Default 0.0: the KL holds the policy near the
    reference, and decay would pull it towards zero instead. Set it for very long runs."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """The actor's optimiser. "adamw" keeps 8 bytes per trained weight (arXiv 1711.05101). "adamw_8bit" keeps
    2, in blocks of 256 numbers (arXiv 2110.02861); it needs the package bitsandbytes and a GPU. Default
    adamw: it is exact. Use adamw_8bit where all weights are trained and memory
    runs out."""
    adam_eps: float = 1e-5
    """Epsilon of the actor's AdamW. Default 1e-5, detail 3 of
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/. Raise it when weights with
    hardly any gradient move too much."""
    entropy_coef: float = -0.215
    """Weight of the entropy bonus, per token; below 0 it is a penalty. Default -0.215, measured on the
    built-in world (benchmarks/RESULTS.md); 0 is usual. Noise in the gradient flattens the policy, which then
    makes more mistakes; a penalty, together with the exact KL in the loss, undoes that without noise of its
    own. Where the reward is indifferent, the policy then settles at the reference's distribution raised to
    the power kl_coef / (kl_coef + entropy_coef), so the sum of the two must stay above 0. Set it to 0 when
    you change kl.kl_coef or kl.placement, or set kl.target."""
    min_entropy: float | None = 1.0
    """The run stops, with a checkpoint, when the policy's entropy falls below this many nats per image: the
    policy has collapsed. null never stops the run. Default 1.0, our own: almost nothing in the image is then
    left to chance. Raise it to stop earlier."""

    def __post_init__(self) -> None:
        not_negative(self, "actor", "learning_rate", "warmup_iterations", "weight_decay")
        positive(self, "actor", "max_grad_norm", "adam_eps", "min_entropy", "lora_alpha")
        at_least_one(self, "actor", "lora_rank")
