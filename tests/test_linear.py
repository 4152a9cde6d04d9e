"""The product of large weights and few rows, taken the other way round."""

from unittest.mock import patch

import pytest
import torch
from tiny_models import relative_difference
from torch.nn import functional as F

from dalle_ppo.models import linear as module
from dalle_ppo.models.linear import FEW_ROWS, Linear, linear

LARGE = (1024, 512)


@pytest.mark.parametrize(
    "shape", [(512,), (0, 512), (1, 512), (3, 512), (2, 5, 512), (FEW_ROWS, 512), (129, 512)]
)
@pytest.mark.parametrize("size", [LARGE, (7, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@torch.no_grad()
def test_it_is_the_product_by_the_book(shape, size, dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in (shape, size))
    out, oracle = linear(x, weight), torch.einsum("...k,nk->...n", x.double(), weight.double())
    assert out.shape == oracle.shape and out.dtype == dtype and out.is_contiguous()
    if out.numel():
        bound = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
        assert relative_difference(out.double(), oracle) <= bound


@pytest.mark.parametrize(
    "rows, size, gradient, plain",
    [
        (2, LARGE, False, False),
        (FEW_ROWS, LARGE, False, False),
        (FEW_ROWS + 1, LARGE, False, True),
        (2, (512, 512), False, True),
        (2, LARGE, True, True),
    ],
)
def test_the_other_way_is_for_few_rows_of_large_weights_without_gradient(rows, size, gradient, plain):
    layer, x = Linear(size[1], size[0]), torch.randn(rows, size[1])
    with torch.set_grad_enabled(gradient), patch.object(module.F, "linear", wraps=F.linear) as by_rows:
        layer(x)
    assert by_rows.called == plain
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16, "an autocast narrows it, as any product"


def test_columns_that_are_not_contiguous():
    x, weight = torch.randn(4, 512, 3), torch.randn(LARGE)
    with torch.no_grad():
        assert (
            relative_difference(linear(x.transpose(1, 2), weight), F.linear(x.transpose(1, 2), weight)) < 1e-6
        )
