"""Terms on CLIP embeddings: published heads, and similarity in a CLIP of the term's own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip import factory
from torch import nn
from transformers_folders import write_clip, write_siglip

from dalle_ppo.build import rewards as build
from dalle_ppo.config.clip import ClipConfig
from dalle_ppo.config.settings import Config, RewardConfig
from dalle_ppo.config.term import read_terms
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.heads.nsfw import head_probability, load_detector

SHARED = Path(__file__).resolve().parents[3] / "shared"
AESTHETIC = SHARED / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth"
VIOLENCE = SHARED / "nsfw" / "violence_detection_vit_l_14.npy"
CPU = torch.device("cpu")
CAPTIONS = ["a red boat", "two green skulls", "blue", "a red boat"]
# None is so dark or bright that resizing leaves 0..1, where ours is cut off and transformers' is not.
IMAGES = torch.randint(90, 166, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255
needs_aesthetic = pytest.mark.skipif(not AESTHETIC.exists(), reason="needs the published head")
needs_violence = pytest.mark.skipif(not VIOLENCE.exists(), reason="needs the published directions")


@dataclass(kw_only=True)
class Projection(ClipScorer):
    """Stands in for ViT-L/14: fixed numbers of each image, of norms far from 1, as a CLIP's own are."""

    device = CPU

    def encode_images(self, images):
        mixed = torch.randn(images[0].numel(), 768, generator=torch.Generator().manual_seed(1))
        return 10 * (images - 0.5).flatten(1) @ mixed

    def encode_texts(self, captions):
        return torch.randn(len(captions), 768, generator=torch.Generator().manual_seed(2))


STAND_IN = Projection(name="ViT-L-14", pretrained="openai")


def reward_of(*terms: dict, world=None):
    config = Config(clip=ClipConfig("ViT-L-14", "openai"), reward=RewardConfig(list(terms)))
    return build.build_reward(config, world, CPU)(IMAGES, CAPTIONS)


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(build, "load_clip", lambda *arguments: STAND_IN)


# --- heads


def published_predictor() -> nn.Module:
    """The published module, without the dropout that does nothing when it scores."""
    places = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    layers = nn.Sequential(*(nn.Linear(*places[i]) if i in places else nn.Identity() for i in range(8)))
    state = torch.load(AESTHETIC, map_location="cpu", weights_only=True)
    layers.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
    return layers


@needs_aesthetic
@torch.no_grad()
def test_the_aesthetic_score_is_of_normalised_embeddings(stand_in):
    raw = STAND_IN.encode_images(IMAGES)
    predictor = published_predictor()
    expected = predictor(raw / raw.norm(dim=1, keepdim=True))[:, 0]
    result = reward_of({"name": "aesthetic", "head": str(AESTHETIC), "weight": 2})
    torch.testing.assert_close(result.parts["aesthetic_score"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.total, 2 * expected, rtol=1e-4, atol=1e-4)
    assert raw.norm(dim=1).min() > 2, "else embeddings as they are would do"
    assert ((predictor(raw)[:, 0] - expected).abs() > 1).all()


@needs_violence
@pytest.mark.parametrize("column", [None, 0, 1])
def test_violence_is_the_difference_of_two_dot_products(stand_in, column):
    x = STAND_IN.embed_images(IMAGES).numpy()
    dots = x @ np.load(VIOLENCE).T
    expected = dots[:, 1] - dots[:, 0] if column is None else dots[:, column]
    entry = {"head": str(VIOLENCE), "weight": 3}
    found = reward_of({"name": "head", "column": column, **entry})
    assert found.parts["head"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.total.tolist() == pytest.approx((3 * expected).tolist(), abs=3e-5)
    if column is None:
        found = reward_of({"name": "violence", **entry})
        assert found.parts["violence_score"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        assert found.total.tolist() == pytest.approx((-3 * expected).tolist(), abs=3e-5)


def test_a_detector_is_a_head_like_any_other():
    world = World()
    config = Config(reward=RewardConfig([{"name": "head", "head": "builtin"}]))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = build.build_reward(config, world, CPU)(images, CAPTIONS[:3])
    detector, embeddings = (
        load_detector(world.detector),
        load_clip(str(world.clip), None).embed_images(images),
    )
    torch.testing.assert_close(found.total, head_probability(detector, embeddings))
    assert build.measures_sha256(config, world).keys() == {"clip", "judge", "head"}


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"name": "head"}, "head of head is not set; give the head's file"),
        ({"name": "head", "head": "x", "column": -1}, "column of head is -1; it must be 0 or more"),
        ({"name": "clip_similarity", "pretrained": "a.pt"}, "pretrained of .* is a.pt, but model is not set"),
        ({"name": "clip_similarity", "model": "builtin"}, "leave it out, and set clip.model to builtin"),
        ({"name": "clip_similarity", "transform": "log"}, "transform of clip_similarity is 'log'"),
    ],
)
def test_wrong_settings_are_one_line(entry, words):
    with pytest.raises(ValueError, match=words) as error:
        read_terms([entry])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"name": "aesthetic"}, "no such file; get it from https://github.com/christophschuhmann/"),
        ({"name": "violence"}, "no such file; get it from https://github.com/LAION-AI/"),
        ({"name": "head", "head": "a.pth"}, "head is a.pth, but there is no such file; give the head's path"),
        pytest.param(
            {"name": "head", "head": str(VIOLENCE), "column": 2}, "no output column 2", marks=needs_violence
        ),
        pytest.param(
            {"name": "head", "head": str(AESTHETIC), "column": 1}, "no output column 1", marks=needs_aesthetic
        ),
        ({"name": "clip_similarity", "model": "nowhere"}, "model of clip_similarity is 'nowhere': neither"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(stand_in, entry, words):
    with pytest.raises(ValueError, match=words) as error:
        reward_of(entry)
    assert "\n" not in str(error.value)


def test_a_detector_is_no_aesthetic_score():
    config = Config(reward=RewardConfig([{"name": "aesthetic", "head": "builtin"}]))
    with pytest.raises(ValueError, match="which returns a probability, not a score"):
        build.build_reward(config, World(), CPU)


# --- preference models and other CLIPs


@pytest.fixture
def no_clip_of_the_run(monkeypatch):
    def loaded(*arguments):
        raise AssertionError("the run's CLIP is loaded")

    monkeypatch.setattr(build, "load_clip", loaded)


@torch.no_grad()
def test_pickscore_is_transformers_logit(tmp_path, no_clip_of_the_run):
    """The recipe in docs/rewards.md, with a small CLIP in the layout that PickScore is published in."""
    model = write_clip(tmp_path / "pickscore", "gelu")
    model.logit_scale.fill_(3.0)
    model.save_pretrained(tmp_path / "pickscore")
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "pickscore")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "pickscore")
    inputs = processor(list(IMAGES), do_rescale=False, return_tensors="pt")
    inputs |= tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    expected = model(**inputs).logits_per_image.diagonal()
    entry = {"name": "clip_similarity", "model": str(tmp_path / "pickscore")}
    for logits, scale in ((True, 1), (False, np.exp(3.0))):
        result = reward_of({**entry, "logits": logits})
        torch.testing.assert_close(result.total, expected / scale, rtol=1e-4, atol=1e-4)
    assert result.embeddings.shape == (4, 24), "for diversity, as no term reads the run's CLIP"
    relu = reward_of({**entry, "transform": "relu"}).total
    torch.testing.assert_close(relu, (expected / np.exp(3.0)).clamp(min=0), rtol=1e-4, atol=1e-5)
    config = Config(clip=ClipConfig("ViT-L-14", "openai"), reward=RewardConfig([entry]))
    assert build.measures_sha256(config, None).keys() == {"clip_similarity.model"}


@torch.no_grad()
def test_siglips_probability_has_its_bias(tmp_path, no_clip_of_the_run):
    model = write_siglip(tmp_path / "siglip")
    model.logit_bias.fill_(-1.0)
    model.logit_scale.fill_(2.0)
    model.save_pretrained(tmp_path / "siglip")
    clip = load_clip(str(tmp_path / "siglip"), None)
    cosine = (clip.embed_images(IMAGES) * clip.embed_texts(CAPTIONS)).sum(dim=1)
    entry = {"name": "clip_similarity", "model": str(tmp_path / "siglip"), "logits": True}
    found = reward_of({**entry, "transform": "sigmoid"}).total
    expected = 1 / (1 + torch.exp(-(np.exp(2.0) * cosine - 1.0)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@torch.no_grad()
def test_hpsv2_is_open_clips_cosine(tmp_path, monkeypatch, no_clip_of_the_run):
    """The recipe in docs/rewards.md, with a small CLIP called ViT-H-14 and a checkpoint as published."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", TINY)
    torch.manual_seed(0)
    model, path = open_clip.CLIP(**TINY).eval(), tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    entry = {"name": "clip_similarity", "model": "ViT-H-14", "pretrained": str(path)}
    with pytest.raises(ValueError, match="set quick_gelu of clip_similarity to true") as error:
        reward_of(entry)
    assert "\n" not in str(error.value)
    mean, std = (
        torch.tensor(getattr(open_clip, f"OPENAI_DATASET_{name}"))[:, None, None] for name in ("MEAN", "STD")
    )
    images, texts, _ = model((IMAGES - mean) / std, open_clip.get_tokenizer("ViT-H-14")(CAPTIONS))
    found = reward_of({**entry, "quick_gelu": False}).total
    torch.testing.assert_close(found, (images * texts).sum(dim=1), rtol=1e-4, atol=1e-5)


def test_the_runs_clip_serves_its_own_terms_beside_another(tmp_path, stand_in):
    write_clip(tmp_path / "other")
    other = {"name": "clip_similarity", "model": str(tmp_path / "other")}
    both, alone = reward_of({"name": "clip_similarity"}, other), reward_of(other)
    parts = both.parts
    assert torch.equal(parts["clip_similarity#2"], alone.parts["clip_similarity"])
    expected = (STAND_IN.embed_images(IMAGES) * STAND_IN.embed_texts(CAPTIONS)).sum(dim=1)
    torch.testing.assert_close(parts["clip_similarity"], expected)
    assert both.embeddings.shape == (4, 768) and alone.embeddings.shape == (4, 24)
