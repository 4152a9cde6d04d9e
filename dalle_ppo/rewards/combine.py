"""Combines a list of terms into one reward.

The rule, for each image:

    total = sum over the terms of  weight * value, where the term's gate is open;  0, where it is closed

The terms are added in the order of the list, in float32. A gate compares a part as its term reports it,
before any weight or gate; where a gate is closed, nothing of its term's value reaches the total.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dalle_ppo.rewards.base import Metadata, RewardResult, Term
from dalle_ppo.rewards.calling import adapted, call
from dalle_ppo.rewards.shared import Shared


class CombinedReward:
    """Calls every term and adds them up.

    Args:
        terms: at least one.
        shared: provides their embeddings.
    """

    def __init__(self, terms: Sequence[Term], shared: Shared | None = None) -> None:
        self.terms, self.shared = tuple(terms), shared or Shared()
        self._functions = [adapted(term.function, term.label) for term in self.terms]

    def __call__(
        self, images: Tensor, captions: Sequence[str], metadata: Metadata | None = None
    ) -> RewardResult:
        """Scores images.

        Args:
            images: float in 0..1, [B, 3, H, W]; never changed, whatever a term does to its copy.
            captions: B of them.
            metadata: metadata of each image's caption; None if nothing is known.

        Raises:
            ValueError: a term raised, or returned anything but one finite number per image.
        """
        metadata = metadata if metadata is not None else [{} for _ in captions]
        parts: dict[str, Tensor] = {}
        results = []
        with self.shared.batch(images, list(captions)):
            for term, function in zip(self.terms, self._functions, strict=True):
                # Copies: a term may write into its arguments, and no other term may see that.
                own: tuple[Any, ...] = (images.clone(), list(captions), [dict(known) for known in metadata])
                results.append(call(function, own, term.label))
                parts |= named_parts(term, results[-1])
            embeddings = self.shared.image_embeddings_if_computed()
        if embeddings is None:
            embeddings = next((r.embeddings for r in results if r.embeddings is not None), None)
        values = [result.total for result in results]
        total = weighted_sum(self.terms, values, parts)
        return RewardResult(total, parts, embeddings, counted_values(self.terms, values, parts))


def weighted_sum(terms: Sequence[Term], values: Sequence[Tensor], parts: dict[str, Tensor]) -> Tensor:
    """The total, by the rule above.

    Args:
        terms: N terms.
        values: value of each term, float32 [B].
        parts: by name, float32 [B], as gates name them.

    Returns:
        float32 [B].
    """
    total = torch.zeros_like(values[0])
    for term, value in zip(terms, values, strict=True):
        share = term.weight * value
        if term.gate is not None:
            share = torch.where(term.gate.is_open(parts[term.gate.part]), share, 0.0)
        total = total + share
    return total


def counted_values(
    terms: Sequence[Term], values: Sequence[Tensor], parts: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Each term's value by its label, float32 [B], as in `weighted_sum`; NaN where its gate is closed."""
    counted = {}
    for term, value in zip(terms, values, strict=True):
        is_open = None if term.gate is None else term.gate.is_open(parts[term.gate.part])
        counted[term.label] = value if is_open is None else torch.where(is_open, value, torch.nan)
    return counted


def named_parts(term: Term, result: RewardResult) -> dict[str, Tensor]:
    """The parts of a result: declared ones under their name, others under the term's label and a slash.

    Raises:
        ValueError: a declared part is missing.
    """
    found, named = dict(result.parts), {}
    for part in term.parts or (term.label,):
        values = found.pop(part.partition("#")[0], None)
        if values is None and part != term.label:
            raise ValueError(f"reward {term.label} declares the part {part}, but did not return it")
        named[part] = result.total if values is None else values
    return named | {f"{term.label}/{name}": values for name, values in found.items()}
