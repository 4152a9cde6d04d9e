"""Embeddings of a folder of images, against CLIP called by hand and open_clip's own preprocessing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers_folders import write_clip, write_naflex, write_siglip

from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.training.detector.images import embed_images, find_images, labels_from_names, read_image

WORLD = World()
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def clip():
    return load_clip(str(WORLD.clip), None)


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colours, so that scaling loses little: uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width] / 64
    return np.stack([127 * (1 + np.sin(2 * x + y)), 127 * (1 + np.cos(y * 3)), 255 * x / x.max()], -1).astype(
        "uint8"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several sizes and kinds, and what is none."""
    folder = tmp_path_factory.mktemp("images")
    for sub in ("b", "a/deep", ".hidden"):
        (folder / sub).mkdir(parents=True)
    Image.fromarray(picture(64, 64)).save(folder / "b" / "2.png")
    Image.fromarray(picture(64, 64)).convert("L").save(folder / "b" / "10.PNG")
    Image.fromarray(picture(90, 200)).save(folder / "a" / "wide.webp", lossless=True)
    Image.fromarray(picture(200, 90)).save(folder / "a" / "deep" / "tall.png")
    Image.fromarray(picture(64, 64)).save(folder / ".hidden" / "x.png")
    (folder / "b" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "b" / "notes.txt").write_text("no image")
    return folder


NAMES = ["a/deep/tall.png", "a/wide.webp", "b/10.PNG", "b/2.png", "b/broken.png"]


def test_images_are_found_in_order(folder, tmp_path):
    assert find_images(folder) == NAMES
    with pytest.raises(ValueError, match="holds no images"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        find_images(tmp_path / "missing")


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_embeddings_are_clips_in_order(folder, clip, batch_size):
    batches = list(embed_images(folder, NAMES, clip, batch_size))
    assert [name for batch in batches for name in batch.names] == NAMES[:4]
    ((name, reason),) = [line for batch in batches for line in batch.unreadable]
    assert name == "b/broken.png" and reason and "\n" not in reason
    found = np.concatenate([batch.embeddings for batch in batches if batch.names])
    assert found.dtype == np.float32
    by_hand = []
    for name in NAMES[:4]:
        pixels = (
            torch.from_numpy(np.array(Image.open(folder / name).convert("RGB"))).permute(2, 0, 1).float()
            / 255
        )
        by_hand.append(clip.embed_images(pixels[None]))
    np.testing.assert_allclose(found, torch.cat(by_hand).numpy(), atol=2e-6)


def test_embeddings_are_nearly_those_of_open_clips_own_preprocessing(folder, clip):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{WORLD.clip}")
    (batch,) = embed_images(folder, NAMES[:4], clip, 10)
    with torch.no_grad():
        images = torch.stack([preprocess(Image.open(folder / name)) for name in NAMES[:4]])
        expected = torch.nn.functional.normalize(model.eval().encode_image(images), dim=-1).numpy()
    assert (batch.embeddings * expected).sum(1).min() > 0.99


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("name", NAMES[:4])
def test_squares_are_those_of_open_clip(clip, folder, mode, name):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(size=48, resize_mode=mode, mean=(0, 0, 0), std=(1, 1, 1))
    expected = image_transform_v2(config, is_train=False)(Image.open(folder / name))
    model = SimpleNamespace(visual=SimpleNamespace(image_size=48))
    found = replace(clip, model=model).resized(read_image(folder / name, mode == "shortest")[None])[0]
    assert (found - expected).abs().mean() < 0.005 and (found - expected).abs().max() < 0.05


KINDS = {"clip": write_clip, "siglip": write_siglip, "naflex": write_naflex}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_in_transformers_layout_embeds_too(kind, folder, tmp_path):
    """CLIP crops, SigLIP squashes, NaFlex keeps the shape; the oracle is transformers alone."""
    KINDS[kind](tmp_path / kind)
    clip = load_clip(str(tmp_path / kind), None)
    assert clip.crops == (kind == "clip")
    (batch,) = embed_images(folder, NAMES[:4], clip, 10)
    pictures = [Image.open(folder / name).convert("RGB") for name in NAMES[:4]]
    with torch.no_grad():
        pixels = clip.processor(images=pictures, return_tensors="pt")
        expected = clip.model.get_image_features(**pixels).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
    assert (batch.embeddings * expected).sum(1).min() > 0.99


def test_the_mode_is_clips(clip):
    assert not clip.crops
    assert replace(clip, preprocess={"resize_mode": "shortest"}).crops
    with pytest.raises(ValueError, match="pads images"):
        replace(clip, preprocess={"resize_mode": "longest"}).crops  # noqa: B018


def test_images_are_upright(tmp_path):
    """EXIF orientation 6: to be shown turned by 90 degrees clockwise."""
    upright = picture(40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png", crop=True)
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), upright / np.float32(255), atol=1e-6)


def test_labels_are_the_names_of_subfolders():
    names = ["nsfw/1.png", "sfw/2.png", "Unsafe/deep/3.png", "0/4.png"]
    assert labels_from_names(names).tolist() == [1, 0, 1, 0]
    assert labels_from_names(["gore/1.png", "cats/2.png", "dogs/3.png"], ("gore",)).tolist() == [1, 0, 0]
    for names, folders, message in (
        (["a/1.png"], (), "subfolder a is not one of .* --unsafe NAME"),
        (["1.png"], (), "1.png is not in a subfolder"),
        (["a/1.png"], ("b",), "--unsafe b: no image .*; found: a"),
    ):
        with pytest.raises(ValueError, match=message):
            labels_from_names(names, folders)
