"""The reward: its branches at the boundaries, own rewards, and CLIP as open_clip alone computes it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.iconworld.captions import TAGS, sample_caption, sample_scene
from dalle_ppo.iconworld.scenes import draw_batch
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.heads.nsfw import load_detector
from dalle_ppo.rewards.base import RewardResult, check_result
from dalle_ppo.rewards.combine import (
    DefaultReward,
    Thresholds,
    import_reward,
    thresholded_reward,
    weighted_sum,
)

WORLD = World()


def thresholds(**changes) -> Thresholds:
    config = replace(RewardConfig(), **changes)
    return Thresholds(**{name: getattr(config, name) for name in Thresholds.__dataclass_fields__})


def score(probability: float, similarity: float, **changes) -> float:
    # float64: 0.1 and 0.4 are then exactly the thresholds.
    inputs = (torch.tensor([value], dtype=torch.float64) for value in (probability, similarity))
    return thresholded_reward(*inputs, thresholds(**changes)).item()


@pytest.mark.parametrize(
    "probability, expected",
    [
        (1.0, -30.0),
        (np.nextafter(0.4, 1), -30.0),
        (0.4, -10.0),
        (0.25, -10.0),
        (np.nextafter(0.1, 1), -10.0),
        (0.1, 6.0),
        (0.05, 6.0),
        (0.01, 6.0),
        (np.nextafter(0.01, 0), 8.0),
        (0.0, 8.0),
    ],
)
def test_each_branch_at_its_boundaries(probability, expected):
    assert score(probability, 0.3, clean_bonus=2.0) == pytest.approx(expected, abs=1e-6)


def test_defaults_are_those_of_the_design():
    assert [score(p, 0.3) for p in (0.5, 0.2, 0.05, 0.001)] == pytest.approx([-30, -10, 6, 6], abs=1e-6)


@pytest.mark.parametrize("probability, penalty", [(0.9, -30.0), (0.2, -10.0)])
def test_no_similarity_buys_an_unsafe_image(probability, penalty):
    assert [score(probability, s) for s in (-1.0, 0.0, 1.0)] == [penalty] * 3


def test_similarity_counts_on_safe_images_with_its_weight():
    assert score(0.05, -0.5) == pytest.approx(-10) and score(0.05, 0.5, clip_weight=4.0) == pytest.approx(2)


def test_every_branch_is_reachable_in_one_batch():
    t = thresholds(clean_bonus=1.0)
    scores = thresholded_reward(torch.tensor([0.9, 0.2, 0.05, 0.001]), torch.full((4,), 0.25), t)
    assert scores.tolist() == [-30.0, -10.0, 5.0, 6.0] and scores.dtype == torch.float32


IMAGES, CAPTIONS = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), ["a", "b", "c"]


def base_reward(images, captions):
    parts = {"clip_similarity": torch.tensor([0.1, 0.2, 0.3])}
    return RewardResult(torch.tensor([1.0, 2.0, 3.0]), parts, torch.eye(3))


def bright(images, captions):
    return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("own", [bright, lambda images, captions: RewardResult(bright(images, captions))])
def test_own_rewards_are_added_with_their_weight_and_shown_without(own):
    reward = weighted_sum([("default", 1.0, base_reward), ("mine:bright", -2.0, own)])
    result = reward(IMAGES, CAPTIONS)
    expected = torch.tensor([1.0, 2.0, 3.0]) - 2 * IMAGES.mean(dim=(1, 2, 3))
    torch.testing.assert_close(result.total, expected)
    assert set(result.parts) == {"clip_similarity", "mine:bright"}
    assert torch.equal(result.embeddings, torch.eye(3)), "the first reward's, which CLIP is not run again for"
    torch.testing.assert_close(result.parts["mine:bright"], IMAGES.mean(dim=(1, 2, 3)))


def test_own_rewards_may_count_in_integers():
    counting = lambda images, captions: torch.tensor([len(c) for c in captions])  # noqa: E731
    result = weighted_sum([("default", 1.0, base_reward), ("mine:length", 0.5, counting)])(IMAGES, CAPTIONS)
    assert result.total.tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    "returned, words",
    [
        (torch.tensor([1.0, float("nan"), 2.0]), "1 of 3 values not finite"),
        (torch.tensor([1.0, float("inf"), -float("inf")]), "2 of 3 values not finite"),
        (torch.ones(2), r"shape \(2,\)"),
        (torch.ones(3, 1), r"shape \(3, 1\)"),
        (torch.tensor(1.0), r"shape \(\)"),
        ([1.0, 2.0, 3.0], "list"),
        (None, "NoneType"),
        (RewardResult(torch.ones(3), {"odd": torch.ones(4)}), r"odd of shape \(4,\)"),
        (RewardResult(torch.ones(3), {"odd": [1, 2, 3]}), "odd of shape list"),
        (RewardResult(torch.ones(3), {"odd": torch.tensor([0.0, float("nan"), 0.0])}), "odd with 1 of 3"),
    ],
)
def test_unusable_results_are_refused_by_name(returned, words):
    reward = weighted_sum(
        [("default", 1.0, base_reward), ("mine:odd", 1.0, lambda images, captions: returned)]
    )
    with pytest.raises(ValueError, match=f"mine:odd.*{words}"):
        reward(IMAGES, CAPTIONS)


def test_what_an_own_reward_raises_is_named():
    def broken(images, captions):
        return captions[99]

    with pytest.raises(ValueError, match=r"mine:broken.*IndexError"):
        weighted_sum([("default", 1.0, base_reward), ("mine:broken", 1.0, broken)])(IMAGES, CAPTIONS)


def test_a_usable_result_passes_unchanged():
    result = base_reward(IMAGES, CAPTIONS)
    assert check_result(result, 3, "default") is result


def test_own_rewards_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine.py").write_text("def f(images, captions):\n    return 'found'\nNUMBER = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_reward("rewards_of_mine:f")(None, None) == "found"
    for call, words in {
        "rewards_of_mine": "my_module:my_function",
        "rewards_of_mine:g": "no function g",
        "rewards_of_mine:NUMBER": "no function NUMBER",
        "rewards_of_nobody:f": "rewards_of_nobody.* cannot be imported",
    }.items():
        with pytest.raises(ValueError, match=words):
            import_reward(call)


@pytest.fixture(scope="module")
def clip():
    return load_clip(str(WORLD.clip), None)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(3)
    captions = [sample_caption(rng, tag, "heldout") for tag in TAGS for _ in range(2)]
    return draw_batch([sample_scene(rng, caption) for caption in captions]), [c.text for c in captions]


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def test_embeddings_are_those_of_open_clip_with_its_own_preprocessing(clip, scenes):
    """The folder opened by open_clip alone: its PIL transform, its tokenizer."""
    import open_clip
    import torch.nn.functional as F

    images, texts = scenes
    source = f"local-dir:{WORLD.clip}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    tokenizer = open_clip.get_tokenizer(source, bpe_path=str(WORLD.clip / "bpe_simple_vocab.txt.gz"))
    with torch.no_grad():
        batch = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        expected_images = F.normalize(model.eval().encode_image(batch), dim=-1)
        expected_texts = F.normalize(model.encode_text(tokenizer(texts)), dim=-1)
    torch.testing.assert_close(clip.embed_images(as_tensor(images)), expected_images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.embed_texts(texts), expected_texts, rtol=1e-4, atol=1e-5)


def test_embeddings_are_normalised_and_do_not_depend_on_the_batch(clip, scenes):
    images, texts = as_tensor(scenes[0]), scenes[1]
    for all_at_once, alone in (
        (clip.embed_images(images), [clip.embed_images(image[None]) for image in images]),
        (clip.embed_images(images), [clip.embed_images(images, microbatch_size=4)]),
        (clip.embed_texts(texts), [clip.embed_texts([text]) for text in texts]),
    ):
        assert all_at_once.dtype == torch.float32
        torch.testing.assert_close(all_at_once.norm(dim=1), torch.ones(len(images)))
        torch.testing.assert_close(torch.cat(alone), all_at_once, rtol=1e-4, atol=1e-5)


def test_a_repeated_caption_is_embedded_once_and_put_back_in_its_places(clip, monkeypatch):
    seen, original = [], clip.model.encode_text
    monkeypatch.setattr(clip.model, "encode_text", lambda t: seen.append(len(t)) or original(t))
    repeated = clip.embed_texts(["a red boat", "a skull", "a red boat", "a red boat"])
    assert seen == [2]
    expected = torch.cat([clip.embed_texts([text]) for text in ("a red boat", "a skull")])[[0, 1, 0, 0]]
    torch.testing.assert_close(repeated, expected, rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_resized_as_pil_does(clip, scenes):
    image = Image.fromarray(scenes[0][0])
    large = np.array(image.resize((160, 160), Image.Resampling.BICUBIC))
    small = np.array(Image.fromarray(large).resize((64, 64), Image.Resampling.BICUBIC))
    embedding, expected = clip.embed_images(as_tensor(large[None])), clip.embed_images(as_tensor(small[None]))
    assert (embedding * expected).sum().item() > 0.999


@pytest.mark.parametrize(
    "model, pretrained, words",
    [
        ("ViT-L-41", "openai", "clip.model is 'ViT-L-41'"),
        ("ViT-B-32", None, "clip.pretrained is not set"),
        ("ViT-B-32", "no_such_tag", "no_such_tag.* cannot be loaded"),
    ],
)
def test_a_clip_that_is_not_there_is_one_line(model, pretrained, words):
    with pytest.raises(ValueError, match=words) as caught:
        load_clip(model, pretrained)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_clip_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_clip(str(tmp_path), None)
    assert "\n" not in str(caught.value)


def test_the_default_reward_is_detector_and_cosine_of_one_clip_pass(clip, scenes, monkeypatch):
    images, texts = as_tensor(scenes[0]), scenes[1]
    detector, passes = load_detector(WORLD.detector), []
    embeddings, original = clip.embed_images(images), clip.embed_images
    monkeypatch.setattr(clip, "embed_images", lambda x: passes.append(1) or original(x))
    result = DefaultReward(clip, detector, thresholds())(images, texts)
    assert len(passes) == 1
    torch.testing.assert_close(result.embeddings, embeddings, rtol=0, atol=0)
    rounded = embeddings.half().float() if detector.info.round_to_float16 else embeddings
    with torch.no_grad():
        torch.testing.assert_close(result.parts["nsfw_probability"], detector(rounded))
    cosine = torch.nn.functional.cosine_similarity(embeddings, clip.embed_texts(texts))
    torch.testing.assert_close(result.parts["clip_similarity"], cosine, rtol=1e-4, atol=1e-5)
    for total, p, s in zip(
        result.total.tolist(), *(part.tolist() for part in result.parts.values()), strict=True
    ):
        expected = -30 if p > 0.4 else -10 if p > 0.1 else 20 * s
        assert total == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"clip_model": "ViT-L-14"}, {"clip_pretrained": "openai"}, {"dimension": 768}, {"clip_model": ""}],
)
def test_a_detector_of_another_clip_is_refused_in_one_line(clip, change):
    detector = load_detector(WORLD.detector)
    detector.info = replace(detector.info, **change)
    with pytest.raises(ValueError, match="CLIP") as caught:
        DefaultReward(clip, detector, thresholds())
    assert "\n" not in str(caught.value)
