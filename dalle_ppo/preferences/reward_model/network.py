"""The ensemble: k small networks, fitted at once on resampled captions, each with its own penalty.

The loss of a ranking is that of Plackett and Luce: the best picture is chosen among all, the next among the
rest, and so on, each with the softmax of the scores. With two pictures this is Bradley and Terry's. Tied
pictures are each chosen among all that are not better (Breslow's rule), which pulls their scores together.
Ties count because they help: without them, a linear model agreed with about one pair in a hundred less.

Source: Plackett 1975, https://doi.org/10.2307/2346567; Breslow 1974, https://doi.org/10.2307/2529620.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_ppo.base.checks import at_least_one, not_negative
from dalle_ppo.models.heads.head_layers import LayerSpec
from dalle_ppo.preferences.reward_model.data import Rankings

START = 0.1
"""Size of the last layer's first weights; 1 would make the first scores about as large as those learned."""


@dataclass(frozen=True)
class FitSettings:
    """How the ensemble is fitted.

    Args:
        members: number of networks.
        hidden: width of the hidden layer; 0 is a linear model.
        penalties: on the squared weights, next to the mean loss of an answer; each member keeps the best.
        steps: of L-BFGS for each penalty, at most.
        seed: of weights and resampling.
    """

    members: int = 5
    hidden: int = 128
    penalties: tuple[float, ...] = (0.003, 0.01, 0.03)
    steps: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "", "members", "steps")
        not_negative(self, "", "hidden")
        if not self.penalties or min(self.penalties) < 0:
            raise ValueError(f"penalties is {self.penalties}; give at least one, none of them negative")


class Ensemble(nn.Module):
    """k networks from features to one score each.

    Args:
        features: of the pictures to learn from, float32 [P, F], for the normalisation.
        settings: sizes.
        generator: of the first weights.
    """

    def __init__(self, features: Tensor, settings: FitSettings, generator: torch.Generator):
        super().__init__()
        k, h, width = settings.members, settings.hidden, features.shape[1]
        scale = features.std(0)
        self.register_buffer("mean", features.mean(0))
        # A column that hardly changes must not be scaled up.
        self.register_buffer("scale", scale.clamp(min=float(scale.mean()) / 10 + 1e-8))
        sizes = (width, h, 1) if h else (width, 1)
        weights = [torch.randn(k, a, b, generator=generator) / a**0.5 for a, b in pairwise(sizes)]
        # Answers are few: what they do not say about a picture shall be near 0, not the noise of the start.
        weights[-1] *= START
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(torch.zeros(k, b) for b in sizes[1:])

    def forward(self, features: Tensor) -> Tensor:
        """Scores [P, k] of pictures with their captions [P, F]."""
        x = ((features - self.mean) / self.scale).expand(len(self.weights[0]), -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias[:, None, :], F.relu(x) if i else x, weight)
        return x[..., 0].T

    def layers(self, slope: float, centre: Tensor) -> list[LayerSpec]:
        """The layers of a head: features [B, F] to scores `slope * (score - centre)` [B, k].

        Args:
            slope: of the calibration.
            centre: subtracted from each member's score, [k].
        """
        specs = [LayerSpec("normalization", {}, {"mean": self.mean.clone(), "scale": self.scale.clone()})]
        *hidden, last = [w.detach().double() for w in self.weights]
        *hidden_biases, last_bias = [b.detach().double() for b in self.biases]
        for weight, bias in zip(hidden, hidden_biases, strict=True):  # [k, F, h]: side by side
            kernel = weight.permute(1, 0, 2).flatten(1)
            specs.append(LayerSpec("dense", {}, {"kernel": kernel.float(), "bias": bias.flatten().float()}))
            specs.append(LayerSpec("activation", {"name": "relu"}))
        # With hidden layers, each member reads its own numbers alone.
        kernel = torch.block_diag(*last) if hidden else last[..., 0].T
        bias = (last_bias[:, 0] - centre.double()) * slope
        specs.append(LayerSpec("dense", {}, {"kernel": (kernel * slope).float(), "bias": bias.float()}))
        return specs


def ranking_losses(scores: Tensor, rankings: Rankings) -> Tensor:
    """Minus the log-likelihood of each ranking for each member.

    Args:
        scores: [P, k].
        rankings: A rankings of these pictures.

    Returns:
        [A, k], in nats.
    """
    s, there = scores[rankings.index], rankings.ranks > 0  # [A, N, k], [A, N]
    log_sum = torch.where(_chosen_among(rankings.ranks), s[:, None], -torch.inf).logsumexp(dim=2)
    return ((log_sum - s) * there[..., None]).sum(dim=1)


def _chosen_among(ranks: Tensor) -> Tensor:
    """bool [A, N, N, 1]: is picture i chosen from a set that holds j? An absent one is alone in its set."""
    there = ranks > 0
    worse_or_equal = (ranks[:, None, :] >= ranks[:, :, None]) & there[:, None, :] & there[:, :, None]
    return (worse_or_equal | torch.eye(ranks.shape[1], dtype=torch.bool))[..., None]


def fit(parts: dict[str, Rankings], settings: FitSettings) -> Ensemble:
    """Fits an ensemble; each member learns from its own resample of the captions, and keeps its best penalty.

    The loss is minimised to its end for each penalty. Stopping AdamW early instead costs points: its first
    steps are as long for columns that say nothing as for those that say much.

    The same seed gives the same ensemble on one machine. The global random state is not touched.

    Args:
        parts: `fit` is learned from, `validation` decides on the penalty.
        settings: how to fit.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    learned, validation = _own_pictures(parts["fit"]), _own_pictures(parts["validation"])
    ensemble = Ensemble(learned.features, settings, generator)
    weights = _resampled(learned, settings.members, generator)
    first = [p.detach().clone() for p in ensemble.parameters()]
    best, best_loss = [p.clone() for p in first], torch.full((settings.members,), torch.inf)
    for penalty in settings.penalties:
        _set(ensemble, first)
        _minimise(ensemble, learned, weights, penalty, settings.steps)
        with torch.no_grad():
            found = ranking_losses(ensemble(validation.features), validation).mean(dim=0)
        better = found < best_loss
        best_loss = torch.where(better, found, best_loss)
        for kept, now in zip(best, ensemble.parameters(), strict=True):
            kept[better] = now.detach()[better]
    _set(ensemble, best)
    return ensemble


def _minimise(ensemble: Ensemble, learned: Rankings, weights: Tensor, penalty: float, steps: int) -> None:
    optimizer = torch.optim.LBFGS(ensemble.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = ranking_losses(ensemble(learned.features), learned)
        # A sum over members: none reads another's numbers.
        loss = (losses * weights).mean(dim=0).sum()
        loss = loss + penalty * sum(weight.square().sum() for weight in ensemble.weights)
        loss.backward()
        return loss

    optimizer.step(closure)


@torch.no_grad()
def _set(ensemble: Ensemble, values: list[Tensor]) -> None:
    for parameter, value in zip(ensemble.parameters(), values, strict=True):
        parameter.copy_(value)


def _own_pictures(rankings: Rankings) -> Rankings:
    """The same rankings without the pictures that they do not name."""
    used = rankings.index[rankings.ranks > 0].unique()
    index = torch.searchsorted(used, rankings.index).clamp(max=len(used) - 1)
    index = torch.where(rankings.ranks > 0, index, 0)
    return replace(rankings, features=rankings.features[used], index=index)


def _resampled(rankings: Rankings, members: int, generator: torch.Generator) -> Tensor:
    """How often each member sees each ranking, [A, k]: captions are drawn with replacement."""
    names = {caption: i for i, caption in enumerate(dict.fromkeys(rankings.captions))}
    own = torch.tensor([names[caption] for caption in rankings.captions])
    if members == 1:
        return torch.ones(len(rankings), 1)
    drawn = torch.randint(len(names), (members, len(names)), generator=generator)
    counts = torch.stack([torch.bincount(row, minlength=len(names)) for row in drawn], dim=1)
    return counts[own].float()
