"""Turns logits into the distribution that is sampled from. Nothing else may compute a log-probability."""

import torch
from torch import Tensor


def log_pi_of_logits(logits: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """Log-distribution over the codes.

    Args:
        logits: float32 [..., V], with guidance applied.
        temperature: divides the logits; above 0.
        top_k: keeps only the k most likely codes; None keeps all.

    Returns:
        float32 [..., V], log-softmax over the support; -inf outside a top-k support.
    """
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        # Ties with the k-th code are kept, as in the min-dalle package.
        lowest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    return torch.log_softmax(logits, dim=-1)


def gather_log_probs(log_pi: Tensor, tokens: Tensor) -> Tensor:
    """Log-probs of `tokens` [N, T] under `log_pi` [N, T, V]; float32 [N, T]."""
    return log_pi.gather(-1, tokens[..., None])[..., 0]
