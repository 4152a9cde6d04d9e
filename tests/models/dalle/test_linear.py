"""Products of large weights, other ways than `F.linear`."""

from unittest.mock import patch

import pytest
import torch
from tiny_models import TINY, relative_difference, tiny_bart, tiny_prompts
from torch.nn import functional as F

from dalle_ppo.models.dalle import linear as module
from dalle_ppo.models.dalle.linear import FEW_ROWS, Linear, PackedLinear, linear
from dalle_ppo.models.dalle.sampling import sample
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.noise import noise_keys

LARGE = (1024, 512)
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch lacks oneDNN")


@pytest.mark.parametrize(
    "shape", [(512,), (0, 512), (1, 512), (3, 512), (2, 5, 512), (FEW_ROWS, 512), (129, 512)]
)
@pytest.mark.parametrize("size", [LARGE, (7, 512), (192, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@torch.no_grad()
def test_it_is_the_product_by_the_book(shape, size, dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in (shape, size))
    out, oracle = linear(x, weight), torch.einsum("...k,nk->...n", x.double(), weight.double())
    assert out.shape == oracle.shape and out.dtype == dtype and out.is_contiguous()
    if out.numel():
        bound = {torch.float32: 3e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
        assert relative_difference(out.double(), oracle) <= bound


@needs_onednn
@pytest.mark.parametrize(
    "rows, size, gradient, way",
    [
        (FEW_ROWS, LARGE, False, "columns"),
        (FEW_ROWS + 1, LARGE, False, "onednn"),
        (129, LARGE, False, "onednn"),
        (FEW_ROWS, (512, 512), False, "rows"),
        (FEW_ROWS + 1, (512, 512), False, "rows"),
        (27, (192, 192), False, "rows"),
        (32, (192, 192), False, "onednn"),
        (32, (192, 192), True, "onednn"),
        (27, (192, 192), True, "rows"),
        (FEW_ROWS + 1, LARGE, True, "onednn"),
        (FEW_ROWS, LARGE, True, "rows"),
    ],
)
def test_other_ways_are_for_large_products(rows, size, gradient, way):
    layer, x = Linear(size[1], size[0]), torch.randn(rows, size[1])
    with (
        torch.set_grad_enabled(gradient),
        patch.object(module.F, "linear", wraps=F.linear) as by_rows,
        patch.object(module, "onednn_product", wraps=module.onednn_product) as by_onednn,
    ):
        layer(x)
    assert (by_rows.called, by_onednn.called) == (way == "rows", way == "onednn")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16, "an autocast narrows it, as any product"


@needs_onednn
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_gradients_are_those_by_the_book(needs, turned):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    x, weight, outer = randn(2, 32, 192), randn(200, 192), randn(2, 200, 32).transpose(1, 2)
    outer = outer if turned else outer.contiguous()
    given = [part.requires_grad_(need) for part, need in zip((x, weight), needs, strict=True)]
    with patch.object(module, "onednn_product", wraps=module.onednn_product) as by_onednn:
        (linear(x, weight) * outer).sum().backward()
    assert by_onednn.call_count == 1 + sum(needs)
    oracles = (
        torch.einsum("btn,nk->btk", outer.double(), weight.double()),
        torch.einsum("btn,btk->nk", outer.double(), x.double()),
    )
    for part, need, oracle in zip(given, needs, oracles, strict=True):
        assert (part.grad is None) != need
        assert not need or relative_difference(part.grad.double(), oracle) < 3e-6


def test_without_onednn_it_is_torchs_own_product(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(module, "onednn_product", None)
    x, weight = torch.randn(7, 512), torch.randn(LARGE)
    with torch.no_grad():
        assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("shape", [(4, 512, 3), (1, 512, 2)], ids=["onednn", "columns"])
def test_inputs_that_are_not_contiguous(shape):
    x, weight = torch.randn(shape).transpose(1, 2), torch.randn(LARGE)
    with torch.no_grad():
        assert relative_difference(linear(x, weight), x @ weight.T) < 3e-6


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 512), (3, 512), (2, 5, 512), (64, 512)])
@torch.no_grad()
def test_a_packed_weight_gives_the_product_for_any_number_of_rows(shape):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(LARGE, generator=generator)
    out = PackedLinear(weight, 3)(x)
    assert relative_difference(out.double(), x.double() @ weight.double().T) <= 3e-6


@needs_onednn
@pytest.mark.parametrize("settings", [PolicySettings(guidance=3.0), PolicySettings(guidance=1.0)])
def test_a_packed_decoder_draws_the_same_images(settings, monkeypatch):
    encoder, decoder = tiny_bart()
    prompts, keys = tiny_prompts(encoder, settings, 8, 5), noise_keys(0, "generate", 0, ["a"] * 6, range(6))
    drawn = sample(decoder, prompts, keys, settings)
    monkeypatch.setattr(module, "LARGE_WEIGHT", 1)
    for _ in range(2):  # reference and policy may be one network
        decoder.pack(12)
    packed = [name for name, part in decoder.named_modules() if isinstance(part, PackedLinear)]
    assert len(packed) == 9 * TINY.num_layers + 1
    left = sum(part.weight.numel() for part in decoder.modules() if isinstance(part, Linear))
    assert left == 2 * TINY.num_layers * TINY.width**2, (
        "the originals are gone, but for keys and values of captions"
    )
    again = sample(decoder, prompts, keys, settings)
    assert torch.equal(drawn.tokens, again.tokens)
    assert (drawn.log_probs - again.log_probs).abs().max() <= 1e-5


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_a_frozen_network_computes_the_same_and_keeps_its_tensors(bias):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(512, 1024, bias=bias), torch.nn.GELU()).requires_grad_(
        False
    )
    x, names = torch.randn(4, 512), list(network.state_dict())
    oracle = network.double()(x.double())
    network.float()
    module.use_frozen_linear(network)
    assert list(network.state_dict()) == names and isinstance(network[0], torch.nn.Linear)
    with torch.no_grad(), patch.object(module, "onednn_product", wraps=module.onednn_product) as by_onednn:
        assert relative_difference(network(x).double(), oracle) < 3e-6
    assert by_onednn.called
    x.requires_grad_()
    assert network(x).requires_grad, "inputs may still need a gradient"
