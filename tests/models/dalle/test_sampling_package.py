"""Our sampler draws the tokens that the `min_dalle` package draws, given the same noise."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from min_dalle_reference import PackageLoop, package_decoder, package_encoder
from published_models import MINI
from tiny_models import TINY, captions, tiny_bart

from dalle_ppo.models.dalle.sampling import encode_prompts, gumbel_noise, noise_keys, sample
from dalle_ppo.models.policy_settings import PolicySettings

LENGTHS = (5, 9, 3, 64, 12, 30, 7, 8)  # of captions, in tokens


@contextmanager
def race(noise: torch.Tensor) -> Iterator[None]:
    """The package draws with `torch.multinomial`; here the same distribution, but with our noise."""
    with patch("torch.multinomial", lambda p, n: (p.log() + noise).argmax(-1, keepdim=True)):
        yield


@torch.no_grad()
def test_all_256_tokens_are_the_packages_with_its_own_settings():
    """Sizes of the vocabulary and of the sequence are mini's, and so are the package's constants."""
    settings = PolicySettings(guidance=16.0, temperature=0.9, top_k=256, start_token=16383)
    encoder, decoder = tiny_bart(MINI, seed=8)
    decoder.lm_head.weight.mul_(0.15)  # guidance 16 on large logits would leave one code
    text, empty = captions(*LENGTHS, config=MINI), captions(2, config=MINI)[0]
    keys = noise_keys(0, "generate", 0, [str(i) for i in range(8)], [0] * 8)
    ours = sample(decoder, encode_prompts(encoder, text, empty, settings), keys, settings)
    assert ours.tokens.shape == (8, 256) and len(ours.tokens.unique()) > 500
    assert -ours.log_probs.mean() > 1, "the draw must matter"
    networks = package_encoder(encoder, MINI), package_decoder(decoder, MINI)
    loops = [PackageLoop(*networks, caption, empty, 1) for caption in text]
    package_settings = torch.tensor([0.9, 256, 16.0])
    current = torch.full((8, 1), 16383)
    for t in range(256):
        noise = gumbel_noise(keys, t, 16384)
        for i, loop in enumerate(loops):
            with race(noise[i : i + 1]):
                current[i] = loop.sample(current[i], t, package_settings)
        assert torch.equal(current[:, 0], ours.tokens[:, t]), f"token {t}"


@torch.no_grad()
def test_several_images_of_a_caption_are_the_packages_with_few_codes_and_ties():
    config = replace(
        TINY, width=32, num_text_tokens=64, image_vocab_count=63, num_codes=64, num_image_tokens=16
    )
    encoder, decoder = tiny_bart(config, seed=8)
    decoder.lm_head.weight.mul_(0.15)
    decoder.lm_head.weight.copy_(decoder.lm_head.weight[:16].repeat(4, 1))  # the tenth code is one of four
    settings = PolicySettings(guidance=16.0, top_k=10, start_token=config.image_vocab_count - 1)
    text, empty = captions(*LENGTHS, config=config), captions(2, config=config)[0]
    keys = noise_keys(0, "generate", 0, [str(i) for i in range(8) for _ in range(2)], [0, 1] * 8)
    ours = sample(decoder, encode_prompts(encoder, text, empty, settings), keys, settings)
    assert -ours.log_probs.mean() > 0.5, "the draw must matter"
    networks = package_encoder(encoder, config), package_decoder(decoder, config)
    package_settings = torch.tensor([settings.temperature, settings.top_k, settings.guidance])
    for i, caption in enumerate(text):
        loop = PackageLoop(*networks, caption, empty, 2)
        current = torch.full((2,), config.image_vocab_count - 1)
        for t in range(config.num_image_tokens):
            with race(gumbel_noise(keys[2 * i : 2 * i + 2], t, config.num_codes)):
                current = loop.sample(current, t, package_settings)
            assert torch.equal(current, ours.tokens[2 * i : 2 * i + 2, t]), f"caption {i}, token {t}"
