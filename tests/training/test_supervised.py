"""Supervised training: the loss against a loop, caption dropout, the order of the data, learning."""

import copy
import itertools
import math

import pytest
import torch
from tiny_models import TINY, captions, image_tokens, tiny_bart

from dalle_ppo.training import supervised
from dalle_ppo.training.supervised import (
    SupervisedConfig,
    TokenPairs,
    next_token_loss,
    random_batches,
    train_supervised,
)

EMPTY = captions(2)[0]


def pairs_of(count: int) -> TokenPairs:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 11, (count,), generator=generator).tolist()
    return TokenPairs(captions(*lengths), image_tokens(count))


@torch.no_grad()
def test_loss_is_the_mean_over_tokens_of_a_loop_over_growing_prefixes():
    encoder, decoder = tiny_bart(dtype=torch.float64)
    pairs = pairs_of(3)
    losses = []
    for text, image in zip(pairs.text_tokens, pairs.image_tokens, strict=True):
        cross = decoder.cross_states(encoder(text[None]))
        for t in range(TINY.num_image_tokens):
            last = decoder(image[None, : t + 1], cross)[0, -1]
            logits = (decoder.lm_head.weight[: TINY.num_codes] @ last).tolist()
            losses.append(math.log(math.fsum(map(math.exp, logits))) - logits[image[t]])
    loss = next_token_loss(encoder, decoder, pairs.text_tokens, pairs.image_tokens)
    assert float(loss) == pytest.approx(sum(losses) / len(losses), rel=1e-10)


def batches_of(monkeypatch, pairs: TokenPairs, config: SupervisedConfig) -> list[tuple]:
    """What each step of training sees, with a loss that costs nothing."""
    seen = []

    def record(encoder, decoder, text, image):
        seen.append((text, image))
        return decoder.final_ln.weight.sum()

    monkeypatch.setattr(supervised, "next_token_loss", record)
    list(train_supervised(*tiny_bart(), pairs, EMPTY, config))
    return seen


@pytest.mark.parametrize("share", [0.0, 0.12, 0.5])
def test_share_of_captions_dropped(monkeypatch, share):
    pairs = pairs_of(200)
    config = SupervisedConfig(num_steps=50, batch_size=60, caption_dropout=share)
    batches = batches_of(monkeypatch, pairs, config)
    text, image = (torch.cat(parts) for parts in zip(*batches, strict=True))
    dropped = (text == EMPTY).all(1)
    spread = math.sqrt(share * (1 - share) / len(text))
    assert abs(float(dropped.float().mean()) - share) <= 4 * spread
    captions_of = {tuple(i.tolist()): t for t, i in zip(pairs.text_tokens, pairs.image_tokens, strict=True)}
    assert len(captions_of) == 200
    for t, i in zip(text[~dropped], image[~dropped], strict=True):
        assert torch.equal(captions_of[tuple(i.tolist())], t), "a caption stands with another's image"


def test_every_pair_is_visited_as_often_as_any_other_in_a_seeded_order(monkeypatch):
    pairs = pairs_of(15)
    runs = [
        torch.cat([image for _, image in batches_of(monkeypatch, pairs, config)])
        for config in (SupervisedConfig(num_steps=12, batch_size=5, seed=seed) for seed in (0, 0, 1))
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    for epoch in runs[0].split(15):
        assert torch.equal(epoch.unique(dim=0), pairs.image_tokens.unique(dim=0))
    assert not torch.equal(runs[0][:15], runs[0][15:30])


def test_batches_are_full_even_when_larger_than_the_data(monkeypatch):
    batches = batches_of(monkeypatch, pairs_of(3), SupervisedConfig(num_steps=4, batch_size=8))
    assert [len(text) for text, _ in batches] == [8] * 4


def test_overlong_captions_come_in_batches_of_their_own():
    """Two epochs, nearly, of 400 captions, 58 of them long; in each, both kinds come in a random mix."""
    lengths = torch.full((400,), 10)
    lengths[::7][:57], lengths[5:8] = 64, torch.tensor([20, 21, 22])  # more than 20 is long
    batches = itertools.islice(random_batches(lengths, 8, torch.Generator().manual_seed(0)), 98)
    rows = list(batches)
    kinds = torch.tensor([int((lengths[batch] > 20).sum()) for batch in rows])
    assert set(kinds.tolist()) == {0, 8}, "no batch is mixed"
    for kind, count in ((True, 58), (False, 342)):
        drawn = torch.cat([batch for batch in rows if bool(lengths[batch[0]] > 20) == kind])
        times = torch.bincount(drawn, minlength=400)[(lengths > 20) == kind]
        assert len(times) == count and times.max() - times.min() <= 1
    places = (kinds == 8).nonzero()[:, 0]
    assert places.diff().max() < 40 and places.diff().float().std() > 1, "spread over the epoch, at random"


def test_training_memorises_a_few_pairs():
    encoder, decoder = tiny_bart()
    encoder.requires_grad_(True)
    pairs = pairs_of(4)
    config = SupervisedConfig(
        num_steps=150, batch_size=4, learning_rate=2e-2, warmup_steps=5, caption_dropout=0.0, weight_decay=0.0
    )
    losses = [numbers["loss"] for numbers in train_supervised(encoder, decoder, pairs, EMPTY, config)]
    assert len(losses) == 150 and losses[0] > math.log(TINY.num_codes) * 0.8
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        shuffled = next_token_loss(encoder, decoder, pairs.text_tokens.roll(1, 0), pairs.image_tokens)
    assert shuffled > losses[-1] + 0.3, "the caption matters"


@pytest.mark.parametrize("train_encoder", [False, True])
def test_encoder_is_trained_only_if_asked(train_encoder):
    encoder, decoder = tiny_bart()
    before = [copy.deepcopy(x.state_dict()) for x in (encoder, decoder)]
    config = SupervisedConfig(num_steps=2, batch_size=4, warmup_steps=0, train_encoder=train_encoder)
    list(train_supervised(encoder, decoder, pairs_of(4), EMPTY, config))
    same = [
        all(torch.equal(value, state[name]) for name, value in x.state_dict().items())
        for x, state in zip((encoder, decoder), before, strict=True)
    ]
    assert same == [not train_encoder, False]


def test_learning_rate_warms_up_and_decays():
    config = SupervisedConfig(num_steps=20, batch_size=2, learning_rate=1.0e-3, warmup_steps=4)
    rates = [n["learning_rate"] for n in train_supervised(*tiny_bart(), pairs_of(2), EMPTY, config)]
    assert rates[0] == pytest.approx(0.25e-3) and rates[12] == pytest.approx(0.5e-3)
    assert rates.index(max(rates)) == 3 and rates[-1] < 0.02e-3
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_errors_of_the_user():
    encoder, decoder = tiny_bart()
    with pytest.raises(ValueError, match="caption_dropout is 1"):
        SupervisedConfig(caption_dropout=1.0)
    with pytest.raises(ValueError, match="no pairs"):
        list(
            train_supervised(
                encoder, decoder, TokenPairs(captions(), image_tokens(0)), EMPTY, SupervisedConfig()
            )
        )
    decoder.final_ln.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="loss became nan at step 0; lower learning_rate"):
        list(train_supervised(encoder, decoder, pairs_of(2), EMPTY, SupervisedConfig()))
