"""The ensemble: k small networks, fitted at once on resampled captions, each with early stopping.

The loss of a ranking is that of Plackett and Luce: the best picture is chosen among all, the next among the
rest, and so on, each with the softmax of the scores. With two pictures this is Bradley and Terry's. Tied
pictures are each chosen among all that are not better (Breslow's rule), which pulls their scores together.

Source: Plackett 1975, https://doi.org/10.2307/2346567; Breslow 1974, https://doi.org/10.2307/2529620.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_ppo.base.checks import at_least_one, not_negative, positive
from dalle_ppo.models.heads.head_layers import LayerSpec
from dalle_ppo.preferences.reward_model.data import Rankings
from dalle_ppo.training.optim import make_adamw

START = 0.1
"""Size of the last layer's first weights; 1 would make the first scores about as large as those learned."""


@dataclass(frozen=True)
class FitSettings:
    """How the ensemble is fitted.

    Args:
        members: number of networks.
        hidden: width of the hidden layer; 0 is a linear model.
        epochs: steps, each on all answers, at most.
        patience: how many steps without a better validation loss before a member stops.
        learning_rate: AdamW's.
        weight_decay: AdamW's, on matrices.
        seed: of weights and resampling.
    """

    members: int = 5
    hidden: int = 128
    epochs: int = 400
    patience: int = 40
    learning_rate: float = 1e-3
    weight_decay: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "", "members", "epochs", "patience")
        positive(self, "", "learning_rate")
        not_negative(self, "", "hidden", "weight_decay")


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
    """Fits an ensemble; each member learns from its own resample of the captions.

    The same seed gives the same ensemble on one machine. The global random state is not touched.

    Args:
        parts: `fit` is learned from, `validation` decides when to stop.
        settings: how to fit.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    learned, validation = parts["fit"], parts["validation"]
    used = learned.index[learned.ranks > 0].unique()
    ensemble = Ensemble(learned.features[used], settings, generator)
    weights = _resampled(learned, settings.members, generator)
    optimizer = make_adamw(ensemble.parameters(), settings.learning_rate, settings.weight_decay)
    best = [p.detach().clone() for p in ensemble.parameters()]
    best_loss, waited = torch.full((settings.members,), torch.inf), 0
    for _ in range(settings.epochs):
        losses = ranking_losses(ensemble(learned.features), learned)
        loss = (losses * weights).mean(dim=0).sum()  # a sum: no member's step depends on how many there are
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            found = ranking_losses(ensemble(validation.features), validation).mean(dim=0)
        better = found < best_loss - 1e-5
        best_loss = torch.where(better, found, best_loss)
        for kept, now in zip(best, ensemble.parameters(), strict=True):
            kept[better] = now.detach()[better]
        waited = 0 if bool(better.any()) else waited + 1
        if waited >= settings.patience:
            break
    with torch.no_grad():
        for now, kept in zip(ensemble.parameters(), best, strict=True):
            now.copy_(kept)
    return ensemble


def _resampled(rankings: Rankings, members: int, generator: torch.Generator) -> Tensor:
    """How often each member sees each ranking, [A, k]: captions are drawn with replacement."""
    names = {caption: i for i, caption in enumerate(dict.fromkeys(rankings.captions))}
    own = torch.tensor([names[caption] for caption in rankings.captions])
    if members == 1:
        return torch.ones(len(rankings), 1)
    drawn = torch.randint(len(names), (members, len(names)), generator=generator)
    counts = torch.stack([torch.bincount(row, minlength=len(names)) for row in drawn], dim=1)
    return counts[own].float()
