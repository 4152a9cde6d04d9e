"""Turns logits into the distribution that is sampled from. Nothing else may compute a log-probability."""

import torch
from torch import Tensor

MAX_CODES = 2**15  # kept codes are stored as int16


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


def kept_codes(log_pi: Tensor, top_k: int, drawn: Tensor | None = None) -> Tensor:
    """The k most likely codes: exactly k, of equally likely ones those with the lower numbers.

    Args:
        log_pi: log-probs or logits over all codes, [..., V].
        top_k: k; above V it counts as V.
        drawn: codes that must be among them, int64 [...]; one that is not replaces the least likely.

    Returns:
        int16 [..., k], the most likely first.

    Raises:
        ValueError: V does not fit int16.
    """
    if log_pi.shape[-1] > MAX_CODES:
        raise ValueError(
            f"policy.top_k is {top_k}; training with it needs a model of at most {MAX_CODES} codes, and this "
            f"one has {log_pi.shape[-1]}: set policy.top_k to null"
        )
    kept = log_pi.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    if drawn is not None:
        outside = (kept != drawn[..., None]).all(dim=-1)
        kept = torch.cat([kept[..., :-1], torch.where(outside, drawn, kept[..., -1])[..., None]], dim=-1)
    return kept.to(torch.int16)


def log_pi_on(log_pi: Tensor, kept: Tensor) -> Tensor:
    """The distribution on a set of codes, renormalised: `log_pi` [..., V] on `kept` [..., k]; [..., k]."""
    return torch.log_softmax(log_pi.gather(-1, kept.long()), dim=-1)


def places_in(kept: Tensor, tokens: Tensor) -> Tensor:
    """Where each of `tokens` [N, T] stands in its set `kept` [N, T, k]; int64 [N, T]."""
    return (kept == tokens[..., None]).to(torch.uint8).argmax(dim=-1)


def mass_outside(log_pi: Tensor, kept: Tensor) -> Tensor:
    """The probability of all codes but `kept` [..., k] under `log_pi` [..., V]; [...]."""
    return log_pi.exp().scatter(-1, kept.long(), 0.0).sum(dim=-1)


def gather_log_probs(log_pi: Tensor, tokens: Tensor) -> Tensor:
    """Log-probs of `tokens` [N, T] under `log_pi` [N, T, V]; float32 [N, T]."""
    return log_pi.gather(-1, tokens[..., None])[..., 0]
