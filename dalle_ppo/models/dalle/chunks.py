"""Scores in chunks of tokens, so that the logits of a microbatch, [b, T, V], are never whole.

Everything that `token_scores` computes is a number per token, from that token's distribution alone. So the
tokens of all images form one long sequence, which is cut anywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dalle_ppo.models.dalle.sampling import HiddenStates
from dalle_ppo.models.family import TokenScores

LOGITS_AT_ONCE = 2**23
"""Logits of an automatic chunk: 34 MB in float32, and the scores hold about ten tensors of that size."""

ScoreFunction = Callable[[HiddenStates, HiddenStates | None, Tensor, Tensor | None], TokenScores]
"""Maps states of policy and reference, tokens and kept codes, all [1, n, ...], to scores, [1, n]."""


def chunk_tokens(setting: int | str | None, num_codes: int) -> int | None:
    """Tokens of a chunk as `update.logits_chunk` says; None if there are no chunks."""
    return max(1, LOGITS_AT_ONCE // num_codes) if setting == "auto" else setting


def chunked_scores(
    score: ScoreFunction,
    states: tuple[HiddenStates, HiddenStates | None],
    tokens: Tensor,
    kept: Tensor | None,
    chunk: int,
    at_least: int = 0,
) -> TokenScores:
    """Scores of all tokens, computed `chunk` tokens at a time; with gradient, computed again in the backward.

    Args:
        score: computes the scores of some tokens.
        states: of the policy and, if there is one, of the reference, [b, T, D].
        tokens: int64 [b, T].
        kept: codes they were drawn from, int16 [b, T, k], or None.
        chunk: tokens at a time.
        at_least: how many chunks to compute. The rest repeat the first token and are thrown away: processes
            that hold a network in parts wait for each other in every chunk.

    Returns:
        [b, T] each.
    """
    chunks, parts = [slice(start, start + chunk) for start in range(0, tokens.numel(), chunk)], []
    chunks += [slice(0, 1)] * (at_least - len(chunks))
    for rows in chunks:
        of_chunk = [_states_of(s, rows) for s in states], _row(tokens, rows), _row(kept, rows)
        (policy, reference), drawn, codes = of_chunk
        if torch.is_grad_enabled():
            part = checkpoint(
                score, policy, reference, drawn, codes, use_reentrant=False, preserve_rng_state=False
            )
        else:
            part = score(policy, reference, drawn, codes)
        parts.append(part)
    return _joined(parts, tokens.shape)


def _row(tensor: Tensor | None, rows: slice) -> Tensor | None:
    """Some tokens of [b, T, ...] as one sequence, [1, n, ...]."""
    return None if tensor is None else tensor.flatten(0, 1)[rows][None]


def _states_of(states: HiddenStates | None, rows: slice) -> HiddenStates | None:
    if states is None:
        return None
    return HiddenStates(_row(states.conditional, rows), _row(states.unconditional, rows))


def _joined(parts: list[TokenScores], shape: torch.Size) -> TokenScores:
    """The scores of all chunks, [b, T] each."""

    def join(pieces: list[Any]) -> Any:
        if isinstance(pieces[0], Mapping):
            return {name: join([piece[name] for piece in pieces]) for name in pieces[0]}
        return None if pieces[0] is None else torch.cat(pieces, dim=1)[:, : shape.numel()].view(shape)

    joined = {f.name: join([getattr(part, f.name) for part in parts]) for f in fields(TokenScores)}
    return replace(parts[0], **joined)
