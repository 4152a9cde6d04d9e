"""The exact KL of an update takes the reference's states and a pass of its head: only where it counts."""

import pytest
import torch
from tiny_models import TINY
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.config.objective import find_objective
from dalle_ppo.config.settings import Config
from dalle_ppo.models.dalle.family import DalleFamily
from dalle_ppo.runs.metrics import SilentWriter
from dalle_ppo.training import memory, trainer, update
from dalle_ppo.training.trainer import Trainer


def settings(objective: str, **more: object) -> Config:
    own = {name.replace("__", "."): value for name, value in more.items()}
    return changed(TINY_CONFIG, find_objective(objective).defaults | {"objective": objective} | own)


def weights_of(trained: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.actor.module.parameters()])


@pytest.mark.parametrize(
    "objective, more, needed",
    [
        ("best_of_n", {}, False),
        ("best_of_n", {"kl__kl_coef": 0.1}, True),
        ("dpok_sft", {"dpok_sft__form": "data"}, False),
        ("dpok_sft", {"dpok_sft__form": "output"}, True),
        ("ppo", {"kl__kl_coef": 0.0, "actor__entropy_coef": 0.0}, False),
        ("ppo", {"kl__target": 3.0, "actor__entropy_coef": 0.0}, True),
    ],
)
def test_the_reference_is_scored_in_an_update_only_where_its_kl_counts(objective, more, needed, monkeypatch):
    original, references, kept = DalleFamily.score, [], []

    def score(family, policy, rows, **options):
        if torch.is_grad_enabled():
            references.append(options["reference"])
            kept.append(rows.reference_states)
        return original(family, policy, rows, **options)

    monkeypatch.setattr(DalleFamily, "score", score)
    trained = tiny_trainer(settings(objective, **more))
    metrics = trained.iterate(SilentWriter())
    assert references and all((reference is not None) == needed for reference in references)
    assert all((states is not None) == needed for states in kept)
    assert metrics["kl"] is not None and metrics["kl_loss"] is not None
    if not needed:
        assert metrics["kl_loss"] == 0.0


def test_a_kl_that_weighs_nothing_changes_no_weight(monkeypatch):
    config, results = settings("best_of_n", rollout__rollout_batch_size=8), []
    for needed in (False, True):
        if needed:
            for module in (trainer, update):
                monkeypatch.setattr(module, "needs_exact_kl", lambda *_: True)
        trained = tiny_trainer(config)
        start = weights_of(trained)
        metrics = [trained.iterate(SilentWriter()) for _ in range(2)][-1]
        results.append((weights_of(trained), metrics))
        assert not torch.equal(results[-1][0], start)
    (without, metrics), (given, expected) = results
    assert torch.equal(without, given) and metrics.keys() == expected.keys()
    assert {n: v for n, v in metrics.items() if n.endswith("_loss")} == {
        n: v for n, v in expected.items() if n.endswith("_loss")
    }


def test_the_forecast_counts_the_references_states_where_they_are_kept(monkeypatch):
    monkeypatch.setattr(memory, "peak_bytes", lambda *_: 0)  # of activations, which takes seconds
    batches = []
    for kl_coef in (0.0, 0.1):
        config = settings("best_of_n", kl__kl_coef=kl_coef)
        batches.append(memory.predict_memory(config, tiny_trainer(config).networks, None).batch)
    branches = 2 if config.policy.guidance != 1 else 1
    count = config.rollout.rollout_batch_size * TINY.num_image_tokens
    assert batches[1] - batches[0] == 4 * TINY.width * branches * count > 0
