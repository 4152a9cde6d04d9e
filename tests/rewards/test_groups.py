"""Terms that see all images of a caption at once, against loops over images written by hand."""

import itertools
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parsing import parse, refused
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo import train
from dalle_ppo.build.trial import try_reward
from dalle_ppo.rewards.balance import balance
from dalle_ppo.rewards.diversity import distance_within_captions
from dalle_ppo.rewards.groups import caption_groups, pairwise, per_caption
from dalle_ppo.rl.advantages import rloo

CAPTIONS = ["a", "b", "a", "a", "c", "b", "a", "b"]
IMAGES = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_the_images_of_a_caption_need_not_be_adjacent():
    assert caption_groups(CAPTIONS) == [[0, 2, 3, 6], [1, 5, 7], [4]]


def test_a_function_gets_a_captions_images_and_its_numbers_find_their_rows():
    got = []

    @per_caption(at_least=3)
    def order(images, caption):
        got.append((images, caption))
        return [float(i) for i in range(len(images))]

    assert order.images_per_caption == 3
    assert order(IMAGES, CAPTIONS).tolist() == [0, 0, 1, 2, 0, 1, 3, 2]  # a single image scores 0
    assert [caption for _, caption in got] == ["a", "b"]
    assert torch.equal(got[1][0], IMAGES[[1, 5, 7]])


def test_a_comparison_becomes_a_share_of_wins():
    @pairwise
    def brighter(first, second, caption):
        return (first.mean((1, 2, 3)) > second.mean((1, 2, 3))).float()

    found = brighter(IMAGES, CAPTIONS)
    for i in range(8):
        others = [k for k in range(8) if CAPTIONS[k] == CAPTIONS[i] and k != i]
        wins = [float(IMAGES[i].mean() > IMAGES[k].mean()) for k in others]
        assert found[i].item() == pytest.approx(np.mean(wins) if wins else 0)

    @pairwise
    def first_place(first, second, caption):
        return [0.9] * len(first)

    assert first_place(IMAGES, CAPTIONS)[:4].tolist() == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("returned", [[1.0], "good", None, [[1.0], [2.0]]])
def test_anything_but_one_number_an_image_is_refused(returned):
    with pytest.raises(ValueError, match="for the caption 'a'; it must return 4 numbers"):
        per_caption()(lambda images, caption: returned)(IMAGES, CAPTIONS)


def unit(rng, *shape) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rng.normal(size=shape)), dim=-1)


def test_diversity_is_the_mean_distance_from_the_others():
    embeddings = unit(np.random.default_rng(0), 8, 5)
    found = distance_within_captions(embeddings, CAPTIONS)
    for i in range(8):
        others = [k for k in range(8) if CAPTIONS[k] == CAPTIONS[i] and k != i]
        distances = [1 - float(embeddings[i] @ embeddings[k]) for k in others]
        assert found[i].item() == pytest.approx(np.mean(distances) if others else 0, abs=1e-6)


def test_diversity_is_the_credit_of_the_mean_distance():
    """All draws of 3 images from 4 outcomes: the policy gradient with this credit against autograd."""
    rng = np.random.default_rng(1)
    outcomes, logits = unit(rng, 4, 6), torch.tensor(rng.normal(size=4), requires_grad=True)
    pi = logits.softmax(0)
    distances = 1 - outcomes @ outcomes.T
    mean_distance = (pi[:, None] * pi[None, :] * distances).sum()
    (expected,) = torch.autograd.grad(mean_distance, logits, retain_graph=True)
    surrogate, with_rloo = 0.0, 0.0
    for draw in itertools.product(range(4), repeat=3):
        probability = math.prod(pi[i].item() for i in draw)
        credit = 2 * distance_within_captions(outcomes[list(draw)], ["a"] * 3).double()
        compared = rloo(credit, torch.zeros(3, dtype=torch.int64))
        logs = pi.log()[list(draw)]
        surrogate = surrogate + probability * (credit * logs).mean()
        with_rloo = with_rloo + probability * (compared * logs).mean()
    assert torch.allclose(torch.autograd.grad(surrogate, logits, retain_graph=True)[0], expected, atol=1e-6)
    # The others' distances from an image are in its baseline too: (n - 2) / (n - 1) of the gradient is left.
    assert torch.allclose(torch.autograd.grad(with_rloo, logits)[0], expected / 2, atol=1e-6)


def test_the_mean_of_balance_is_minus_the_divergence_from_the_target():
    rng = np.random.default_rng(2)
    p, target = torch.tensor(rng.dirichlet(np.ones(3), size=8)), torch.tensor([0.5, 0.3, 0.2])
    groups = [[0, 1, 2, 3, 4], [5, 6, 7]]
    found = balance(p, target, groups)
    for rows in groups:
        q = p[rows].mean(0)
        divergence = torch.distributions.kl_divergence(
            torch.distributions.Categorical(q), torch.distributions.Categorical(target)
        )
        assert found[rows].mean().item() == pytest.approx(-divergence.item(), abs=1e-5)
    even = balance(torch.eye(3).repeat(2, 1), torch.full((3,), 1 / 3), [list(range(6))])
    assert even.abs().max() < 1e-6


def test_the_credit_of_balance_is_the_gradient_of_the_divergence():
    """A large batch that holds each outcome as often as the policy draws it: no noise is left."""
    p = torch.tensor(np.random.default_rng(3).dirichlet(np.ones(3), size=4))
    target, counts = torch.tensor([0.2, 0.2, 0.6]), torch.tensor([100, 200, 300, 400])
    logits = (counts / 1000).double().log().requires_grad_()
    pi = logits.softmax(0)
    shares = pi @ p
    divergence = (shares * (shares / target).log()).sum()
    (expected,) = torch.autograd.grad(-divergence, logits, retain_graph=True)
    drawn = torch.arange(4).repeat_interleave(counts)
    credit = balance(p[drawn], target, [list(range(1000))]).double()
    (found,) = torch.autograd.grad((credit * pi.log()[drawn]).mean(), logits)
    assert torch.allclose(found, expected, atol=1e-6)


def test_an_attribute_that_no_image_has_gives_finite_credit():
    certain = torch.tensor([[1.0, 0.0]] * 3)
    assert balance(certain, torch.tensor([0.5, 0.5]), [[0, 1, 2]]).tolist() == pytest.approx(
        [-math.log(2)] * 3
    )


MANY = {"rollout.samples_per_caption": 4}
BALANCE = {"name": "balance", "attributes": {"light": "a light picture", "dark": "a dark picture"}}


@pytest.mark.parametrize("term", [{"name": "diversity", "weight": 5}, BALANCE, BALANCE | {"over": "caption"}])
def test_a_run_with_a_term_of_a_group_is_tried_trains_and_draws_samples(term, tmp_path):
    trainer = tiny_trainer(changed(TINY_CONFIG, {"reward.terms": [term], **MANY}), tmp_path)
    assert "tried on two images" in try_reward(trainer)
    metrics = trainer.iterate(NoWriter())
    name = term["name"]
    assert metrics[f"reward/{name}"] > 0 if name == "diversity" else metrics[f"reward/{name}"] <= 0
    if name == "balance":
        assert metrics["reward/balance/light"] + metrics["reward/balance/dark"] == pytest.approx(1)
    assert trainer.score(trainer.collect()).parts[name].shape == (16,)


def test_the_target_of_balance_is_read_by_name():
    def value(**settings):
        config = changed(TINY_CONFIG, {"reward.terms": [BALANCE | {"temperature": 100.0} | settings]})
        trainer = tiny_trainer(config)
        return trainer.reward(IMAGES[:, :, :, :4], ["a"] * 8).parts["balance"]

    # So hot that each share is a half.
    expected = -0.5 * (math.log(0.5 / 0.9) + math.log(0.5 / 0.1))
    turned = {"dark": 0.1, "light": 0.9}
    assert value().abs().max() < 1e-2
    assert value(target=turned).tolist() == pytest.approx([expected] * 8, abs=2e-2)


def test_an_attribute_does_not_take_the_place_of_the_value():
    taken = BALANCE | {"attributes": {"light": "a light picture", "balance": "a balance"}}
    with pytest.raises(ValueError, match=r"attributes of balance names one balance, .* rename it"):
        changed(TINY_CONFIG, {"reward.terms": [taken]})


OWN = """
from dalle_ppo.rewards.groups import pairwise, per_caption

@per_caption(at_least=3)
def spread(images, caption):
    assert len(images) >= 3
    return [images.std().item()] * len(images)

@pairwise
def brighter(first, second, caption):
    return (first.mean((1, 2, 3)) > second.mean((1, 2, 3))).float()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_groups_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_groups_of_a_test", raising=False)
    return "own_groups_of_a_test"


def test_a_gate_on_a_part_that_does_not_exist_ends_the_command_at_once(tmp_path, cli):
    terms = '[{name: diversity}, {name: question, model: m, report_letters: false, only_if: "letters < 0.5"}]'
    outcome = cli(train.main, "--reward.terms", terms, "--run_dir", tmp_path / "run")
    assert outcome.code == 2 and not (tmp_path / "run").exists()
    assert "no term or part is called letters; the names are diversity, question" in outcome.error


def test_the_functions_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    names: dict = {}
    code = re.search(r"```python\n(# group_rewards\.py.*?)```", page, re.DOTALL)[1]
    exec(code, names)
    varied, brighter = names["varied"](IMAGES, CAPTIONS), names["brighter"](IMAGES, CAPTIONS)
    assert varied[4] == 0 < varied[0] and sorted(brighter[[1, 5, 7]].tolist()) == [0, 0.5, 1]


def test_ones_own_functions_of_a_group(own):
    at_end = replace(TINY_CONFIG.evaluation, at_end=False)
    terms = [{"name": f"{own}:brighter"}, {"name": f"{own}:spread"}]
    config = replace(changed(TINY_CONFIG, {"reward.terms": terms, **MANY}), evaluation=at_end)
    trainer = tiny_trainer(config)
    assert "tried on two images" in try_reward(trainer)
    metrics = trainer.iterate(NoWriter())
    assert 0 < metrics[f"reward/{own}:brighter"] <= 0.5 and metrics[f"reward/{own}:spread"] > 0
    with pytest.raises(
        ValueError, match=r"rollout\.samples_per_caption is 2, but .*:spread compares .* least 3"
    ):
        tiny_trainer(changed(config, {"rollout.samples_per_caption": 2}))
    with pytest.raises(ValueError, match=r"evaluation\.samples_per_caption is 2, but .*:spread .* least 3"):
        tiny_trainer(replace(config, evaluation=TINY_CONFIG.evaluation))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "rollout.samples_per_caption is 1, but the reward term diversity .* at least 2"),
        (["rollout", "2", "credit.advantage", "rloo"], "is 2, .* with credit.advantage rloo; .* at least 3"),
        (["rollout", "4", "evaluation", "1"], "evaluation.samples_per_caption is 1, .* at least 2"),
        (["rollout", "3", "credit.advantage", "rloo"], None),
        (["rollout", "4", "evaluation", "1", "evaluation.at_end", "false"], None),
    ],
)
def test_too_few_images_a_caption_are_found_with_the_settings(arguments, words):
    names = [f"{a}.samples_per_caption" if a in ("rollout", "evaluation") else a for a in arguments[::2]]
    given = [text for pair in zip(names, arguments[1::2], strict=True) for text in (f"--{pair[0]}", pair[1])]
    given += ["--reward.terms", "[{name: diversity}]"]
    if words is None:
        parse(*given)
    else:
        message = refused(*given)
        assert re.search(words, message) and "\n" not in message
