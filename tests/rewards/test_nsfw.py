"""The built-in terms: the penalty at its boundaries, and what they read from one CLIP pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dalle_ppo.build import rewards as build
from dalle_ppo.config.settings import Config, RewardConfig
from dalle_ppo.config.terms.nsfw import Settings
from dalle_ppo.iconworld.captions import TAGS, sample_caption, sample_scene
from dalle_ppo.iconworld.scenes import draw_batch
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.heads.nsfw import load_detector
from dalle_ppo.rewards import nsfw
from dalle_ppo.rewards.nsfw import penalty

WORLD, CPU = World(), torch.device("cpu")


def score(probability: float, **changes) -> float:
    # float64: 0.1 and 0.4 are then exactly the thresholds.
    return penalty(torch.tensor([probability], dtype=torch.float64), Settings(**changes)).item()


@pytest.mark.parametrize(
    "probability, expected",
    [
        (1.0, -30.0),
        (np.nextafter(0.4, 1), -30.0),
        (0.4, -10.0),
        (0.25, -10.0),
        (np.nextafter(0.1, 1), -10.0),
        (0.1, 0.0),
        (0.05, 0.0),
        (0.01, 0.0),
        (np.nextafter(0.01, 0), 2.0),
        (0.0, 2.0),
    ],
)
def test_each_branch_at_its_boundaries(probability, expected):
    assert score(probability, clean_bonus=2.0) == expected


def test_the_penalty_is_float32_whatever_the_probabilities():
    values = penalty(torch.tensor([0.9, 0.2, 0.05, 0.001], dtype=torch.float64), Settings(clean_bonus=1.0))
    assert values.tolist() == [-30.0, -10.0, 0.0, 1.0] and values.dtype == torch.float32


@pytest.fixture(scope="module")
def clip():
    return load_clip(str(WORLD.clip), None)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(3)
    captions = [sample_caption(rng, tag, "heldout") for tag in TAGS for _ in range(2)]
    images = draw_batch([sample_scene(rng, caption) for caption in captions])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, [c.text for c in captions]


def counted(monkeypatch, clip) -> dict[str, int]:
    """How often CLIP is loaded, and how many images and captions it embeds at a time."""
    seen = {"loaded": 0, "images": [], "texts": []}
    images, texts = clip.embed_images, clip.embed_texts
    monkeypatch.setattr(clip, "embed_images", lambda x: seen["images"].append(len(x)) or images(x))
    monkeypatch.setattr(clip, "embed_texts", lambda x: seen["texts"].append(len(x)) or texts(x))

    def load(*arguments):
        seen["loaded"] += 1
        return clip

    monkeypatch.setattr(build, "load_clip", load)
    return seen


def test_the_default_is_detector_and_cosine_of_one_clip_pass(clip, scenes, monkeypatch):
    images, texts = scenes
    detector, embeddings = load_detector(WORLD.detector), clip.embed_images(images)
    seen = counted(monkeypatch, clip)
    result = build.build_reward(Config(), WORLD, CPU)(images, texts)
    assert seen == {"loaded": 1, "images": [8, 6], "texts": [6]}, "the probes when the detector is checked"
    torch.testing.assert_close(result.embeddings, embeddings, rtol=0, atol=0)
    rounded = embeddings.half().float() if detector.info.round_to_float16 else embeddings
    with torch.no_grad():
        torch.testing.assert_close(result.parts["nsfw_probability"], detector(rounded))
    cosine = torch.nn.functional.cosine_similarity(embeddings, clip.embed_texts(texts))
    torch.testing.assert_close(result.parts["clip_similarity"], cosine, rtol=1e-4, atol=1e-5)
    parts = (result.parts[name].tolist() for name in ("nsfw_probability", "clip_similarity"))
    zones = set()
    for total, p, s in zip(result.total.tolist(), *parts, strict=True):
        expected = -30 if p > 0.4 else -10 if p > 0.1 else 20 * s
        zones.add(min(expected, 0))
        assert total == pytest.approx(expected, abs=1e-4)
    assert len(zones) > 1, "safe and unsafe images"


def test_clip_runs_once_per_batch_however_many_terms_read_it(clip, scenes, monkeypatch):
    seen = counted(monkeypatch, clip)
    terms = [{"name": name} for name in ("nsfw", "clip_similarity", "nsfw", "clip_similarity")]
    reward = build.build_reward(Config(reward=RewardConfig(terms)), WORLD, CPU)
    seen["images"].clear()
    for rows in (6, 4):
        reward(scenes[0][:rows], scenes[1][:rows])
    assert seen == {"loaded": 1, "images": [6, 4], "texts": [6, 4]}


def test_clip_is_not_loaded_for_terms_that_do_not_read_it(monkeypatch):
    def loaded(*arguments):
        raise AssertionError("loaded")

    monkeypatch.setattr(build, "load_clip", loaded)
    monkeypatch.setattr(nsfw, "load_detector", loaded)
    config = Config(reward=RewardConfig([{"name": "tiny_trainer:red"}]))
    result = build.build_reward(config, WORLD, CPU)(torch.full((2, 3, 4, 4), 0.5), ["a", "b"])
    assert result.total.tolist() == [0.5, 0.5] and result.embeddings is None
    assert build.measures_sha256(config, WORLD).keys() == {"judge"}


def test_only_what_is_builtin_needs_the_builtin_world():
    with pytest.raises(ValueError, match=r"clip\.model and detector of reward term nsfw: builtin") as caught:
        build.build_reward(Config(), None, CPU)
    assert "\n" not in str(caught.value)
    build.build_reward(Config(reward=RewardConfig([{"name": "tiny_trainer:red"}])), None, CPU)


@pytest.mark.parametrize(
    "change",
    [{"clip_model": "ViT-L-14"}, {"clip_pretrained": "openai"}, {"dimension": 768}, {"clip_model": ""}],
)
def test_a_detector_of_another_clip_is_refused_in_one_line(monkeypatch, change):
    """By its names: one without probes."""
    detector = load_detector(WORLD.detector)
    detector.info, detector.probes = replace(detector.info, **change), None
    monkeypatch.setattr(nsfw, "load_detector", lambda path: detector)
    with pytest.raises(ValueError, match="CLIP") as caught:
        build.build_reward(Config(), WORLD, CPU)
    assert "\n" not in str(caught.value)


def test_a_term_that_reads_clip_must_say_so():
    """Otherwise nothing would know before loading that CLIP is needed, and no evaluation would hash it."""
    config = Config(reward=RewardConfig([{"name": "tiny_trainer:red"}]))
    with pytest.raises(ValueError, match="lack reads_clip = True; add it"):
        _ = build.build_reward(config, WORLD, CPU).shared.clip
