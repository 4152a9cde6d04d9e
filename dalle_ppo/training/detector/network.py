"""The detector's network: a normalisation and a small MLP, fitted with early stopping."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_ppo.base.checks import at_least_one, not_negative, positive
from dalle_ppo.models.heads.head_layers import LayerSpec
from dalle_ppo.training.detector.calibration import Calibration
from dalle_ppo.training.detector.data import Examples, Parts
from dalle_ppo.training.optim import make_adamw


@dataclass(frozen=True)
class FitSettings:
    """How the network is fitted.

    Args:
        hidden: widths of the hidden layers; an empty one is logistic regression.
        epochs: passes over the images, at most.
        patience: how many passes without a better validation loss before it stops.
        batch_size: images per step.
        learning_rate: AdamW's.
        weight_decay: AdamW's, on matrices.
        dropout: share of hidden units left out in each step.
        seed: seed of weights, order and dropout.
    """

    hidden: tuple[int, ...] = (128, 64)
    epochs: int = 200
    patience: int = 15
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "", "epochs", "patience", "batch_size")
        positive(self, "", "learning_rate")
        not_negative(self, "", "weight_decay")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden is {' '.join(map(str, self.hidden))}; widths must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class Progress:
    """The state of fitting after a pass over the images; losses are in nats."""

    epoch: int
    loss: float
    validation_loss: float
    best_epoch: int


class Network(nn.Module):
    """Maps embeddings to one logit each: a normalisation, then dense layers with ReLU."""

    def __init__(self, embeddings: Tensor, settings: FitSettings) -> None:
        super().__init__()
        scale = embeddings.std(0)
        # A column that never changes carries no information: it must not be scaled up if it changes later.
        scale = torch.where(scale > 1e-6 * embeddings.abs().amax(0).clamp(min=1e-6), scale, 1.0)
        self.register_buffer("mean", embeddings.mean(0))
        self.register_buffer("scale", scale)
        widths = (embeddings.shape[1], *settings.hidden, 1)
        self.dense = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B] of embeddings [B, D]."""
        x = (x - self.mean) / self.scale
        for layer in self.dense[:-1]:
            x = self.dropout(F.relu(layer(x)))
        return self.dense[-1](x)[:, 0]

    @torch.no_grad()
    def logits(self, examples: Examples) -> np.ndarray:
        """float32 [N], without dropout."""
        self.eval()
        return self(torch.from_numpy(examples.embeddings)).numpy()

    def layers(self, calibration: Calibration) -> list[LayerSpec]:
        """The calibrated network as the layers of a head, ending in a probability."""
        specs = [LayerSpec("normalization", {}, {"mean": self.mean.clone(), "scale": self.scale.clone()})]
        for i, layer in enumerate(self.dense):
            kernel, bias = layer.weight.detach().T.double(), layer.bias.detach().double()
            last = i == len(self.dense) - 1
            if last:
                kernel, bias = kernel * calibration.slope, bias * calibration.slope + calibration.offset
            tensors = {"kernel": kernel.float().contiguous(), "bias": bias.float()}
            specs.append(LayerSpec("dense", {}, tensors))
            specs.append(LayerSpec("activation", {"name": "sigmoid" if last else "relu"}))
        return specs


def fit(parts: Parts, settings: FitSettings) -> Iterator[tuple[Progress, Network]]:
    """Fits a network until the validation loss has not fallen for `patience` passes.

    On one machine, the same seed always gives the same network. The global random state is left as it was.

    Args:
        parts: `fit` is learned from, `validation` decides when to stop.
        settings: how to fit.

    Yields:
        After each pass the progress and the best network so far.
    """
    x, y = torch.from_numpy(parts.fit.embeddings), torch.from_numpy(parts.fit.labels)
    wanted = torch.from_numpy(parts.validation.labels)
    state = _seeded_state(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(state)
        network = Network(x, settings)
        state = torch.random.get_rng_state()
    optimizer = make_adamw(network.parameters(), settings.learning_rate, settings.weight_decay)
    best, best_loss, best_epoch = copy.deepcopy(network), float("inf"), 0
    for epoch in range(1, settings.epochs + 1):
        with torch.random.fork_rng(devices=[]):  # not around the yield: the caller's code keeps its own state
            torch.random.set_rng_state(state)
            loss = _one_pass(network, optimizer, x, y, settings.batch_size)
            state = torch.random.get_rng_state()
        logits = torch.from_numpy(network.logits(parts.validation))
        validation_loss = float(F.binary_cross_entropy_with_logits(logits, wanted))
        if validation_loss < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(network), validation_loss, epoch
        yield Progress(epoch, loss, validation_loss, best_epoch), best
        if epoch - best_epoch >= settings.patience:
            return


def _seeded_state(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()


def _one_pass(network: Network, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, size: int) -> float:
    """Takes one step per batch; returns the mean loss."""
    network.train()
    total = 0.0
    for rows in torch.randperm(len(x)).split(size):
        loss = F.binary_cross_entropy_with_logits(network(x[rows]), y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    return total / len(x)
