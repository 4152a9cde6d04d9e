"""Detectors and heads: the published numbers, the tables, the metadata, and the binding to a CLIP."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.models.heads.head_layers import CategoryEncoding, LayerSpec, build_layers, ordered_bits
from dalle_ppo.models.heads.keras.categories import category_encoding, float32_bounds
from dalle_ppo.models.heads.keras.convert import convert
from dalle_ppo.models.heads.nsfw import (
    EmbeddingHead,
    check_clip,
    head_probability,
    load_detector,
    load_head,
    save_head,
)

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "detectors.md"
SHARED = Path(__file__).resolve().parents[4] / "shared"
PUBLISHED = {
    "l14": ("clip_autokeras_binary_nsfw.zip", [180, 316, 413, 440, 644], [2190, 10425]),
    "b32": ("clip_autokeras_nsfw_b32.zip", [92, 133, 312], [745, 1566]),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request, tmp_path_factory):
    """(name, converted file, embeddings, probabilities that TensorFlow computed)."""
    name = request.param
    source = SHARED / "nsfw" / PUBLISHED[name][0]
    if not source.exists():
        pytest.skip("needs the published detectors")
    out = tmp_path_factory.mktemp(name) / "detector.safetensors"
    convert(source, out)
    reference = np.load(SHARED / "nsfw" / f"{name}_reference.npz")
    embeddings = torch.from_numpy(reference["embeddings"])
    return name, out, embeddings, torch.from_numpy(reference["probabilities"]).reshape(-1)


@torch.inference_mode()
def test_published_probabilities(published):
    _, path, embeddings, expected = published
    found = load_detector(path)(embeddings)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-6


@torch.inference_mode()
def test_published_probabilities_in_small_batches(published):
    _, path, embeddings, expected = published
    detector = load_detector(path)
    found = torch.cat([detector(rows) for rows in embeddings[900:1100].split(3)])
    assert (found - expected[900:1100]).abs().max() <= 1e-6


@torch.inference_mode()
def test_the_tables_matter(published):
    _, path, embeddings, expected = published
    without = (load_detector(path, smooth=True)(embeddings) - expected).abs()
    assert without.max() > 0.01
    for text in (load_detector.__doc__, GUIDE.read_text(encoding="utf-8")):
        assert f"{without.max():.2f}" in text, "what is documented is what is measured"
    encoding = load_detector(path).layers[0]
    known = (encoding(embeddings)[:, encoding.columns] > 0).float()
    # Float16 numbers are often in the tables, other float32 ones seldom.
    assert known[1000:].mean() > 0.02
    assert known[:1000].mean() < 0.2 * known[1000:].mean()


def test_published_metadata(published):
    name, path, _, _ = published
    detector = load_detector(path)
    _, columns, sizes = PUBLISHED[name]
    encoding = detector.layers[0]
    assert encoding.columns.tolist() == columns
    entries = (encoding.index > 0).sum(dim=1)
    assert sizes[0] - 1 <= entries.min() and entries.max() <= sizes[1]
    clip = {"l14": ("ViT-L-14", "openai", 768), "b32": ("ViT-B-32", "openai", 512)}[name]
    info = detector.info
    assert (info.clip_model, info.clip_pretrained, info.dimension) == clip
    assert info.round_to_float16 and info.output == "probability" and "MIT" in info.licence
    check_clip(info, *clip)


# --- the tables


def _printed(values: np.ndarray) -> list[str]:
    """What AsString prints, by C's rules."""
    return [f"{float(value):f}" for value in values]


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32, allow_nan=False) | st.floats(-(2.0**-16), 2.0**-16, width=32))
def test_bounds_hold_exactly_the_numbers_that_print_the_same(value):
    number = np.float32(value)
    text = f"{float(number):f}"
    low, high = float32_bounds(text)
    bits = int(ordered_bits(torch.tensor([number]))[0])
    assert low <= bits <= high
    limits = torch.tensor([low, high, low - 1, high + 1], dtype=torch.int32)
    around = ordered_bits(limits.view(torch.float32)).view(torch.float32)  # the mapping undoes itself
    printed = [f"{float(x):f}" for x in around]
    assert printed[:2] == [text, text]
    assert text not in printed[2:]


@pytest.mark.parametrize("text", ["0.5", "cat", "", "1e-3", " 0.500000", "16777217.000000", "0.5000000"])
def test_texts_no_number_prints_are_never_found(text):
    assert float32_bounds(text) is None


def test_lookup_is_a_dictionary_of_texts():
    """Against Python's own formatting and dict, on values around every rounding boundary."""
    rng = np.random.default_rng(0)
    texts = sorted({f"{x:f}" for x in rng.normal(0, 1e-4, 300).astype(np.float16).astype(np.float32)})
    texts += ["0.000000", "-0.000000", "inf", "-inf", "nan", "8388608.000000"]
    texts = sorted(set(texts))
    table = {text: float(i + 1) for i, text in enumerate(texts)}
    keys = np.array([text.encode() for text in texts], dtype=object)
    spec = category_encoding([1], [(keys, np.arange(1, len(texts) + 1))], ["table"])
    values = np.concatenate(
        [
            rng.normal(0, 1e-4, 4000).astype(np.float16).astype(np.float32),
            (rng.integers(-300, 300, 4000) / 2 * 1e-6).astype(np.float32),  # ties and their neighbours
            np.float32([0.0, -0.0, 5e-7, -5e-7, 1e-45, -1e-45, np.inf, -np.inf, np.nan, 8388608.0, 3e38]),
        ]
    )
    x = np.zeros((len(values), 3), dtype=np.float32)
    x[:, 1] = values
    found = build_layers([spec])(torch.from_numpy(x))
    expected = [table.get(text, 0.0) for text in _printed(values)]
    assert found[:, 1].tolist() == expected
    assert len(set(expected)) > 100
    assert found[:, [0, 2]].abs().max() == 0


def test_tie_of_the_last_decimal_goes_to_even():
    """2 ** -7 = 0.0078125 exactly: seven decimals, a tie for six."""
    keys = np.array([b"0.007812", b"0.007813"], dtype=object)
    layer = build_layers([category_encoding([0], [(keys, np.array([5, 9]))], ["table"])])
    assert layer(torch.tensor([[2.0**-7]])).item() == 5
    assert layer(torch.tensor([[3 * 2.0**-7]])).item() == 0


def test_nan_is_zero_in_number_columns_only():
    keys = np.array([b"0.000000"], dtype=object)
    layer = build_layers([category_encoding([0], [(keys, np.array([7]))], ["table"])])
    found = layer(torch.tensor([[torch.nan, torch.nan], [0.0, -1.0]]))
    assert found.tolist() == [[0.0, 0.0], [7.0, -1.0]]


def test_a_table_that_no_number_is_in():
    keys = np.array([b"cat", b"0.5"], dtype=object)
    layer = build_layers([category_encoding([1], [(keys, np.array([1, 2]))], ["table"])])
    x = torch.tensor([[0.25, 0.5], [torch.nan, torch.nan], [1.0, torch.inf]])
    assert layer(x).tolist() == [[0.25, 0.0], [0.0, 0.0], [1.0, 0.0]]


def test_smooth_uses_index_zero():
    keys = np.array([b"0.500000"], dtype=object)
    spec = category_encoding([0], [(keys, np.array([7]))], ["table"])
    x = torch.tensor([[0.5, 1.0], [0.25, 2.0]])
    assert build_layers([spec], smooth=True)(x).tolist() == [[0.0, 1.0], [0.0, 2.0]]
    assert build_layers([spec])(x).tolist() == [[7.0, 1.0], [0.0, 2.0]]


def test_no_categories_at_all():
    layer = build_layers([category_encoding([], [], [])])
    x = torch.tensor([[1.0, torch.nan]])
    assert layer(x).tolist() == [[1.0, 0.0]]


# --- the module


def _small_head(output: str = "probability", width: int = 5) -> tuple[list[LayerSpec], HeadInfo]:
    generator = torch.Generator().manual_seed(0)
    kernels = [torch.randn(width, 4, generator=generator), torch.randn(4, 1, generator=generator)]
    specs = [
        LayerSpec("dense", {}, {"kernel": kernels[0], "bias": torch.randn(4, generator=generator)}),
        LayerSpec("activation", {"name": "leaky_relu", "negative_slope": 0.3}),
        LayerSpec("dense", {}, {"kernel": kernels[1]}),
        LayerSpec("activation", {"name": "sigmoid"}),
    ]
    return specs, HeadInfo("ViT-B-32", "openai", width, output, source="small.keras")


def test_save_and_load(tmp_path):
    specs, info = _small_head()
    save_head(tmp_path / "head.safetensors", specs, info)
    head = load_detector(tmp_path / "head.safetensors")
    x = torch.randn(10, 5)
    hidden = x @ specs[0].tensors["kernel"] + specs[0].tensors["bias"]
    hidden = torch.where(hidden > 0, hidden, 0.3 * hidden)
    expected = 1 / (1 + torch.exp(-hidden @ specs[2].tensors["kernel"][:, 0]))
    torch.testing.assert_close(head(x), expected, rtol=1e-6, atol=1e-7)
    assert head.info == info
    assert list(tmp_path.iterdir()) == [tmp_path / "head.safetensors"]
    assert not list(head.parameters())


def test_wide_inputs_are_summed_whole():
    """The parts in which wide inputs are summed cover every column."""
    for width in (383, 384, 385, 768, 769, 1000):
        kernel = torch.randn(width, 2, generator=torch.Generator().manual_seed(width))
        x = torch.randn(9, width)
        found = build_layers([LayerSpec("dense", {}, {"kernel": kernel})])(x)
        expected = x.double() @ kernel.double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_row_hardly_depends_on_its_batch():
    head = EmbeddingHead(build_layers(_small_head()[0]), _small_head()[1])
    x = torch.randn(50, 5)
    whole = head(x)
    alone = torch.cat([head(rows) for rows in x.split(1)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)
    assert head(x[:0]).shape == (0,)


def test_large_batches_keep_their_order():
    specs, info = _small_head()
    head = EmbeddingHead(build_layers(specs), info)
    x = torch.randn(2500, 5)
    hidden = nn.functional.leaky_relu(x @ specs[0].tensors["kernel"] + specs[0].tensors["bias"], 0.3)
    expected = torch.sigmoid(hidden @ specs[2].tensors["kernel"])[:, 0]
    torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_embedding():
    specs, info = _small_head()
    head = EmbeddingHead(build_layers(specs), info)
    x = torch.randn(10, 5, requires_grad=True)
    probabilities = head(x)
    probabilities.sum().backward()
    step = 1e-3 * x.grad / x.grad.norm()
    with torch.no_grad():
        change = (head(x + step) - head(x - step)).sum()
        torch.testing.assert_close(probabilities.detach(), head(x), rtol=1e-5, atol=1e-6)
    assert change == pytest.approx(2e-3 * x.grad.norm().item(), rel=1e-2)


def test_embeddings_are_rounded_for_heads_that_were_trained_on_rounded_ones():
    specs, info = _small_head()
    embeddings = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    rounded = torch.from_numpy(embeddings.numpy().astype(np.float16).astype(np.float32))
    as_it_is = EmbeddingHead(build_layers(specs), info)
    trained_on_rounded = EmbeddingHead(build_layers(specs), replace(info, round_to_float16=True))
    assert not torch.equal(as_it_is(embeddings), as_it_is(rounded)), "else rounding shows in nothing"
    assert torch.equal(head_probability(as_it_is, embeddings), as_it_is(embeddings))
    assert torch.equal(head_probability(trained_on_rounded, embeddings), as_it_is(rounded))
    assert not head_probability(as_it_is, embeddings.requires_grad_()).requires_grad


def test_float32_whatever_comes_in():
    head = EmbeddingHead(build_layers(_small_head()[0]), _small_head()[1])
    x = torch.randn(10, 5).to(torch.bfloat16)
    expected = head(x.float())
    assert torch.equal(head(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x.float()), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_on_a_gpu(published):
    _, path, embeddings, expected = published
    found = load_detector(path).cuda()(embeddings.cuda()).cpu()
    assert (found - expected).abs().max() <= 5e-6


@pytest.mark.parametrize("shape", [(3, 4), (5,), (2, 3, 5)])
def test_other_shapes_are_refused(shape):
    head = EmbeddingHead(build_layers(_small_head()[0]), _small_head()[1])
    with pytest.raises(ValueError, match=r"needs \[B, 5\]"):
        head(torch.zeros(shape))


def test_files_that_are_no_heads(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_detector(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no safetensors file")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_detector(tmp_path / "text.safetensors")
    save_head(tmp_path / "score.safetensors", *_small_head("score"))
    with pytest.raises(ValueError, match="use load_head"):
        load_detector(tmp_path / "score.safetensors")
    assert load_head(tmp_path / "score.safetensors")(torch.zeros(1, 5)).shape == (1,)


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="layer 0 is lambda"):
        build_layers([LayerSpec("lambda")])
    with pytest.raises(ValueError, match="cosine"):
        build_layers([LayerSpec("activation", {"name": "cosine"})])
    with pytest.raises(ValueError, match="kernel"):
        build_layers([LayerSpec("dense")])


# --- the CLIP


@pytest.mark.parametrize(
    "clip", [("ViT-L-14", "openai", 768), ("ViT-B-32", "laion2b_e16", 5), ("ViT-B-32", "openai", 6)]
)
def test_another_clip_is_refused(clip):
    with pytest.raises(ValueError, match=r"ViT-B-32 \(openai, 5 numbers\), but the CLIP in use"):
        check_clip(_small_head()[1], *clip)


def test_names_of_the_same_clip():
    for name in ("ViT-B-32", "ViT-B/32", "ViT-B-32-quickgelu"):
        check_clip(_small_head()[1], name, "openai", 5)


def test_unknown_clip_is_refused():
    info = HeadInfo("", "", 5, "probability", source="mine.keras")
    with pytest.raises(ValueError, match="--clip_model"):
        check_clip(info, "ViT-B-32", "openai", 5)


# --- published heads


def test_h14_head_is_its_sequential(tmp_path):
    """The published module, with random weights."""
    torch.manual_seed(0)
    widths = [1024, 1024, 2048, 1024, 256, 128]
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(0.2)]
    layers += [nn.Linear(128, 16), nn.Linear(16, 1)]
    original = nn.ModuleDict({"layers": nn.Sequential(*layers)}).eval()
    torch.save(original.state_dict(), tmp_path / "h14_nsfw.pth")
    head = load_head(tmp_path / "h14_nsfw.pth")
    x = nn.functional.normalize(torch.randn(20, 1024), dim=1)
    torch.testing.assert_close(head(x), original["layers"](x)[:, 0].detach(), rtol=1e-5, atol=1e-6)
    check_clip(head.info, "ViT-H-14", "laion2b_s32b_b79k", 1024)
    assert head.info.output == "score"


def test_aesthetic_head():
    path = SHARED / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth"
    if not path.exists():
        pytest.skip("needs the published head")
    head = load_head(path)
    x = nn.functional.normalize(torch.randn(20, 768, generator=torch.Generator().manual_seed(0)), dim=1)
    state = torch.load(path, map_location="cpu", weights_only=True)
    expected = x.double()
    for place in (0, 2, 4, 6, 7):
        expected = (
            expected @ state[f"layers.{place}.weight"].double().T + state[f"layers.{place}.bias"].double()
        )
    torch.testing.assert_close(head(x).double(), expected[:, 0], rtol=1e-5, atol=1e-5)
    check_clip(head.info, "ViT-L/14", "openai", 768)


@pytest.mark.parametrize("name, clip", [("l_14", ("ViT-L-14", 768)), ("b_32", ("ViT-B-32", 512))])
def test_violence_score_is_positive_where_the_second_direction_is_nearer(name, clip):
    path = SHARED / "nsfw" / f"violence_detection_vit_{name}.npy"
    if not path.exists():
        pytest.skip("needs the published directions")
    head = load_head(path)
    directions = np.load(path)
    x = np.random.default_rng(0).normal(size=(500, clip[1])).astype(np.float32)
    violent = (x @ directions.T).argmax(axis=1) == 1
    assert ((head(torch.from_numpy(x)) > 0).numpy() == violent).all()
    check_clip(head.info, clip[0], "openai", clip[1])


def test_other_torch_and_numpy_files_are_refused(tmp_path):
    torch.save(nn.Linear(3, 1).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="its tensors are not those of"):
        load_head(tmp_path / "linear.pth")
    torch.save({"layers": Path("/")}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match="not a PyTorch state dict"):
        load_head(tmp_path / "pickle.pth")
    np.save(tmp_path / "three.npy", np.zeros((3, 768), dtype=np.float32))
    with pytest.raises(ValueError, match="two directions"):
        load_head(tmp_path / "three.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a numpy array"):
        load_head(tmp_path / "objects.npy")


def test_category_encoding_is_a_module_on_any_device():
    """Tables move with the module: they are buffers, all of them."""
    keys = np.array([b"0.500000"], dtype=object)
    (layer,) = build_layers([category_encoding([0], [(keys, np.array([7]))], ["table"])])
    assert isinstance(layer, CategoryEncoding)
    assert {name for name, _ in layer.named_buffers()} == {"columns", "lower", "upper", "index"}
