"""The encoder-decoder and the critic: parity with the `min_dalle` package, causality, caching."""

from dataclasses import replace

import pytest
import torch
from min_dalle_reference import PackageLoop, package_decoder, package_encoder
from tiny_models import TINY, captions, image_tokens, randomise, relative_difference, tiny_bart

from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder
from dalle_ppo.models.dalle.critic import Critic
from dalle_ppo.models.dalle.presets import VQGAN_PRESETS
from dalle_ppo.models.dalle.vqgan import VqganDecoder, VqganEncoder

# The package's width and depth, reduced; its 64 text tokens as they are.
REDUCED = replace(
    TINY, width=48, num_heads=4, glu_width=80, num_layers=3, num_text_tokens=64, num_image_tokens=24,
    image_vocab_count=70, num_codes=64, text_vocab_count=200,
)  # fmt: skip


@torch.no_grad()
def test_encoder_states_are_the_packages():
    encoder, _ = tiny_bart(REDUCED)
    theirs = package_encoder(encoder, REDUCED)
    text = captions(2, 11, 64, 5, config=REDUCED)
    for pair in text.split(2):  # the package encodes two captions at a time
        states, reference = encoder(pair).states, theirs(pair)
        for ours, full, row in zip(states, reference, pair, strict=True):
            length = int((row != 1).sum())
            assert relative_difference(ours[:length], full[:length]) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("start_token", [None, 69])
def test_logits_at_every_position_are_those_of_the_packages_one_token_loop(start_token):
    encoder, decoder = tiny_bart(REDUCED)
    text, tokens = captions(2, 17, config=REDUCED), image_tokens(3, REDUCED)
    loop = PackageLoop(
        package_encoder(encoder, REDUCED), package_decoder(decoder, REDUCED), text[1], text[0], 3
    )
    start = REDUCED.image_vocab_count if start_token is None else start_token
    previous = torch.cat([torch.full((3, 1), start), tokens[:, :-1]], dim=1)
    theirs = torch.stack([loop.logits(previous[:, t], t) for t in range(tokens.shape[1])], dim=2)
    for row, caption in enumerate(text):
        cross = decoder.cross_states(encoder(caption[None]))
        ours = decoder.head(decoder(tokens, cross, start_token))
        assert ours.shape == (3, 24, REDUCED.num_codes)
        reference = theirs[row, ..., : REDUCED.num_codes]
        for t in range(tokens.shape[1]):
            assert relative_difference(ours[:, t], reference[:, t]) <= 1e-5, f"position {t}"


@torch.no_grad()
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("num_heads", [2, TINY.width])
def test_cached_step_equals_teacher_forcing(num_heads, dtype, bound):
    encoder, decoder = tiny_bart(replace(TINY, num_heads=num_heads), dtype=dtype)
    tokens = image_tokens(6)
    branches = [decoder.cross_states(encoder(captions(*lengths))) for lengths in [(4, 10, 7), (2,)]]
    forced = torch.stack([decoder(tokens, cross) for cross in branches])
    caches = decoder.new_cache(6, len(branches))
    current = torch.full((6,), TINY.start_token)
    for t in range(tokens.shape[1]):
        hidden = decoder.step(current, torch.tensor([t]), caches, branches)
        assert hidden.shape == (2, 6, TINY.width)
        assert relative_difference(hidden, forced[:, :, t]) <= bound, f"position {t}"
        current = tokens[:, t]


@torch.no_grad()
def test_logits_of_cached_steps_equal_those_of_a_whole_sequence_in_float32():
    """The two use different kernels, over the 256 positions of a real image."""
    config = replace(TINY, width=64, num_heads=4, glu_width=96, num_image_tokens=256)
    encoder, decoder = tiny_bart(config)
    tokens, text = image_tokens(2, config), encoder(captions(4, 10, config=config))
    cross = decoder.cross_states(text)
    forced, caches = decoder.head(decoder(tokens, cross)), decoder.new_cache(2, 1)
    current = torch.full((2,), config.start_token)
    for t in range(config.num_image_tokens):
        logits = decoder.head(decoder.step(current, torch.tensor([t]), caches, [cross])[0])
        assert relative_difference(logits, forced[:, t]) <= 1e-5, f"position {t}"
        current = tokens[:, t]


@torch.no_grad()
def test_images_of_one_caption_side_by_side_equal_a_caption_per_image():
    encoder, decoder = tiny_bart(dtype=torch.float64)
    tokens, text = image_tokens(6), encoder(captions(4, 10))
    shared = decoder(tokens, decoder.cross_states(text))
    own = decoder(tokens, decoder.cross_states(text.select(torch.tensor([0, 0, 0, 1, 1, 1]))))
    assert relative_difference(shared, own) <= 1e-12
    wrong = decoder(tokens, decoder.cross_states(text.select(torch.tensor([0, 1, 0, 1, 0, 1]))))
    assert relative_difference(shared, wrong) > 1e-2


@torch.no_grad()
def test_trimming_the_text_changes_nothing():
    encoder, decoder = tiny_bart(dtype=torch.float64)
    text, tokens = captions(4, 6, TINY.num_text_tokens), image_tokens(3)
    untrimmed, alone = encoder(text), encoder(text[:2])
    assert untrimmed.states.shape[1] == TINY.num_text_tokens and alone.states.shape[1] == 6
    for row, length in enumerate((4, 6)):
        assert relative_difference(alone.states[row, :length], untrimmed.states[row, :length]) <= 1e-12
    selected = untrimmed.select(torch.tensor([0, 1]))
    assert selected.states.shape[1] == 6
    full = decoder(tokens, decoder.cross_states(untrimmed))[:2]
    for trimmed in (alone, selected):
        assert relative_difference(decoder(tokens[:2], decoder.cross_states(trimmed)), full) <= 1e-12


@torch.no_grad()
def test_hidden_states_have_seen_the_caption_and_only_the_tokens_before():
    encoder, decoder = tiny_bart(dtype=torch.float64)
    cross, other = (decoder.cross_states(encoder(captions(6, seed=seed))) for seed in (3, 4))
    tokens = image_tokens(1)
    assert_sees_only_the_past(lambda x: decoder(x, cross), tokens)
    assert ((decoder(tokens, cross) - decoder(tokens, other)).abs().amax(-1) > 1e-3).all()


def assert_sees_only_the_past(function, tokens):
    """`function(tokens)[:, t]` depends on every token before t and on none from t on."""
    before = function(tokens)
    for t in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % TINY.num_codes
        moved = (function(changed) - before).abs().reshape(tokens.shape[1], -1).amax(1)
        assert (moved[: t + 1] == 0).all(), f"position {t} or an earlier one has seen token {t}"
        assert (moved[t + 1 :] > 1e-9).all(), f"a position after {t} has not seen token {t}"


def test_no_network_has_dropout():
    vqgan = VQGAN_PRESETS["iconworld"]
    encoder, decoder = tiny_bart()
    for network in (encoder, decoder, Critic(decoder), VqganDecoder(vqgan), VqganEncoder(vqgan)):
        assert not [
            name for name, part in network.named_modules() if "dropout" in type(part).__name__.lower()
        ]
    tokens, text = image_tokens(2), encoder(captions(5))
    runs = [decoder.train(mode)(tokens, decoder.cross_states(text)) for mode in (True, True, False)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


@torch.no_grad()
def test_head_is_float32_for_narrow_weights():
    _, decoder = tiny_bart(dtype=torch.bfloat16)
    hidden = torch.randn(5, TINY.width, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits = decoder.head(hidden)
    exact = hidden.double() @ decoder.lm_head.weight.double()[: TINY.num_codes].T
    assert logits.dtype == torch.float32
    assert relative_difference(logits, exact) <= 1e-6


def test_every_parameter_gets_a_gradient():
    encoder, decoder = tiny_bart()
    encoder.requires_grad_(True)
    hidden = decoder(image_tokens(4), decoder.cross_states(encoder(captions(10, 10))))
    decoder.head(hidden).square().sum().backward()
    untouched = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []
    assert all(p.grad is not None for p in encoder.parameters())


def test_encoder_depth_may_differ_from_the_decoders():
    config = replace(TINY, num_encoder_layers=1)
    assert len(BartEncoder(config).layers) == 1 and len(BartDecoder(config).layers) == 2
    assert TINY.encoder_layers == 2 and TINY.start_token == 14


@torch.no_grad()
def test_critic_is_zero_at_first_and_then_sees_only_tokens_before():
    encoder, decoder = tiny_bart(dtype=torch.float64)
    critic, tokens = Critic(decoder), image_tokens(1)
    assert next(critic.parameters()).dtype == torch.float64
    cross = critic.cross_states(encoder(captions(6)))
    values = critic(tokens, cross)
    assert values.shape == tokens.shape and not values.any()
    randomise(critic.value_head, 7)
    assert_sees_only_the_past(lambda x: critic(x, cross), tokens)


def test_critic_starts_as_the_policys_trunk_and_shares_nothing_with_it():
    encoder, decoder = tiny_bart()
    critic = Critic(decoder)
    trunk = {name: value for name, value in decoder.state_dict().items() if name != "lm_head.weight"}
    assert critic.trunk.state_dict().keys() == trunk.keys()
    assert all(torch.equal(critic.trunk.state_dict()[name], value) for name, value in trunk.items())
    actors = {p.untyped_storage().data_ptr() for p in (*decoder.parameters(), *encoder.parameters())}
    assert not actors & {p.untyped_storage().data_ptr() for p in critic.parameters()}
    cross = critic.cross_states(encoder(captions(6)))
    (critic(image_tokens(2), cross) - 1).square().sum().backward()
    assert all(p.grad is None for p in decoder.parameters())


@torch.no_grad()
def test_values_are_float32_for_narrow_weights():
    encoder, decoder = tiny_bart(dtype=torch.bfloat16)
    critic = Critic(decoder)
    randomise(critic.value_head, 7)
    cross = critic.cross_states(encoder(captions(6)))
    values = critic(image_tokens(2), cross)
    hidden, head = critic.trunk(image_tokens(2), cross).double(), critic.value_head
    exact = (hidden @ head.weight.double().T + head.bias.double())[..., 0]
    assert values.dtype == torch.float32 and relative_difference(values, exact) <= 1e-6
