"""VQGAN: pixel parity with the `min_dalle` package's detokenizer, the codebook search, token order."""

from dataclasses import replace

import pytest
import torch
from min_dalle_reference import package
from tiny_models import relative_difference
from torch.nn import functional as F

from dalle_ppo.models.dalle.presets import VQGAN_PRESETS, VqganConfig
from dalle_ppo.models.dalle.vqgan import (
    VqganDecoder,
    VqganEncoder,
    conv_of_doubled,
    encode_images,
    nearest_codes,
)

PUBLISHED = VQGAN_PRESETS["imagenet_f16_16384"]
SMALL = VqganConfig(
    channels=(8, 8, 16),
    num_codes=20,
    code_width=6,
    blocks_per_level=1,
    norm_groups=4,
    attention=True,
    image_size=32,
)


@pytest.fixture
def package_detokenizer():
    """The package's detokenizer, its sizes fixed, with random weights and mid-grey pixels."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = package().detokenizer.VQGanDetokenizer()
    network = network.to_empty(device="cpu").requires_grad_(False)
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5 if "embedding" not in name else 1.0)
        else:
            value.normal_(std=0.1).add_("norm" in name and name.endswith("weight"))
    network.decoder.conv_out.weight.mul_(0.1)
    network.decoder.conv_out.bias.fill_(0.5)
    return network


def ours_with_the_weights_of(theirs, image_size: int) -> VqganDecoder:
    with torch.device("meta"):
        ours = VqganDecoder(replace(PUBLISHED, image_size=image_size))
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return ours


@torch.no_grad()
def test_pixels_are_the_packages_on_a_small_grid(package_detokenizer):
    # The published architecture on 4 x 4 tokens: the package's layers take any square grid.
    theirs, ours = package_detokenizer, ours_with_the_weights_of(package_detokenizer, 64)
    tokens = torch.randint(0, PUBLISHED.num_codes, (2, 16))
    features = theirs.embedding(tokens).view(2, 4, 4, -1).permute(0, 3, 1, 2).contiguous()
    reference = theirs.decoder(theirs.post_quant_conv(features)).clip(0, 1)
    assert reference.shape == (2, 3, 64, 64)
    assert ((reference > 0) & (reference < 1)).float().mean() > 0.8
    assert relative_difference(ours(tokens), reference) <= 1e-5


@torch.no_grad()
def test_pixels_are_the_packages_at_full_size(package_detokenizer):
    ours = ours_with_the_weights_of(package_detokenizer, PUBLISHED.image_size)
    tokens = torch.randint(0, PUBLISHED.num_codes, (1, 256))
    reference = package_detokenizer(is_seamless=False, z=tokens).permute(2, 0, 1) / 255
    assert relative_difference(ours(tokens)[0], reference) <= 1e-5


@torch.no_grad()
def test_nearest_codes_are_those_of_the_distance_matrix():
    generator = torch.Generator().manual_seed(0)
    # Codes of very different norms: leaving out |c|^2 or its factor would favour the long ones.
    codebook = torch.randn(50, 7, generator=generator) * torch.rand(50, 1, generator=generator) * 3
    features = torch.randn(4, 30, 7, generator=generator)
    distances = torch.cdist(features.double().flatten(0, 1), codebook.double())
    assert torch.equal(nearest_codes(features, codebook), distances.argmin(1).view(4, 30))
    assert torch.equal(nearest_codes(codebook, codebook), torch.arange(50))


def small_vqgan() -> tuple[VqganEncoder, VqganDecoder]:
    torch.manual_seed(0)
    return VqganEncoder(SMALL), VqganDecoder(SMALL)


@torch.no_grad()
@pytest.mark.parametrize("config", [SMALL, VQGAN_PRESETS["iconworld"]])
def test_shapes(config):
    encoder, decoder = VqganEncoder(config), VqganDecoder(config)
    images = torch.rand(3, 3, config.image_size, config.image_size)
    tokens = encode_images(encoder, decoder, images)
    assert encoder(images).shape == (3, config.code_width, config.grid_size, config.grid_size)
    assert tokens.shape == (3, config.grid_size**2) and tokens.dtype == torch.int64
    assert decoder(tokens).shape == images.shape


@torch.no_grad()
def test_tokens_run_row_by_row_when_encoding():
    encoder, decoder = small_vqgan()
    images = torch.rand(2, 3, 32, 32)
    features, tokens = encoder(images), encode_images(encoder, decoder, images)
    assert len(tokens.unique()) > 3
    for i in range(2):
        for row in range(8):
            for column in range(8):
                distances = (decoder.embedding.weight - features[i, :, row, column]).norm(dim=1)
                assert tokens[i, row * 8 + column] == distances.argmin()


@torch.no_grad()
def test_tokens_run_row_by_row_when_decoding():
    _, decoder = small_vqgan()
    tokens = torch.zeros(1, 64, dtype=torch.long)
    before = decoder.from_features(features_of(decoder, tokens))
    tokens[0, 1 * 8 + 6] = 7
    moved = (decoder.from_features(features_of(decoder, tokens)) - before).abs().sum(1)
    blocks = moved.unflatten(2, (8, 4)).unflatten(1, (8, 4)).sum((2, 4))[0]
    row, column = divmod(int(blocks.argmax()), 8)
    assert abs(row - 1) <= 1 and abs(column - 6) <= 1
    expected = decoder.from_features(features_of(decoder, tokens)).clamp(0, 1)
    torch.testing.assert_close(decoder(tokens), expected, rtol=0, atol=1e-5)


def features_of(decoder: VqganDecoder, tokens: torch.Tensor) -> torch.Tensor:
    rows = decoder.embedding.weight[tokens[0]].reshape(8, 8, -1)
    return torch.einsum("ijc->cij", rows)[None]


@torch.no_grad()
def test_uint8_images_are_rounded_whatever_the_microbatch():
    _, decoder = small_vqgan()
    decoder.decoder.conv_out.weight.mul_(3)
    decoder.decoder.conv_out.bias.fill_(0.5)
    tokens = torch.randint(0, SMALL.num_codes, (5, 64), generator=torch.Generator().manual_seed(1))
    images = decoder.decode_uint8(tokens, microbatch_size=2)
    exact = decoder(tokens).double() * 255
    assert images.dtype == torch.uint8 and images.shape == (5, 3, 32, 32)
    assert (images.double() - exact).abs().max() <= 0.5 + 1e-3
    assert ((images.double() - exact) > 0.1).any(), "rounded down"
    whole = decoder.decode_uint8(tokens).int()
    assert (images.int() - whole).abs().max() <= 1
    assert (images.int() != whole).float().mean() < 0.01


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
@torch.no_grad()
def test_a_convolution_of_doubled_images_needs_no_doubled_image(size):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 4, *size), (6, 4, 3, 3), (6,))
    )
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    oracle = F.conv2d(doubled, weight, bias, padding=1)
    out = conv_of_doubled(x, weight, bias)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.shape == oracle.shape and relative_difference(out, oracle) <= 1e-14
