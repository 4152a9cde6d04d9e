"""CLIP as open_clip alone computes it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_ppo.iconworld.captions import TAGS, sample_caption, sample_scene
from dalle_ppo.iconworld.scenes import draw_batch
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip

WORLD = World()


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
    with pytest.raises(ValueError, match=r"open_clip_config\.json is missing") as caught:
        load_clip(str(tmp_path), None)
    assert "\n" not in str(caught.value)


# --- folders that are damaged or half downloaded


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def configured(section, **changes):
    """Changes the configuration; None takes a key out."""

    def change(folder):
        file = folder / "open_clip_config.json"
        config = json.loads(file.read_text())
        part = config["model_cfg"]["vision_cfg"] if section == "vision_cfg" else config[section]
        part |= changes
        for key in [key for key, value in changes.items() if value is None]:
            del part[key]
        file.write_text(json.dumps(config))

    return change


DAMAGES = {
    "SafetensorError": cut("open_clip_model.safetensors", 100_000),
    "EOFError": cut("bpe_simple_vocab.txt.gz", 1000),
    "holds no merges": cut("bpe_simple_vocab.txt.gz", 0),
    "KeyError": configured("model_cfg", vision_cfg=None),
    "TypeError": configured("model_cfg", embed_dim=None),
    "ZeroDivisionError": configured("vision_cfg", patch_size=0),
    "ValueError": configured("vision_cfg", image_size=[]),
}
WRONG_COLOURS = {
    r"mean is \[0\.5, 0\.5\], needs 3 numbers": {"mean": [0.5, 0.5]},
    r"mean is \['a', 'b', 'c'\], needs 3 numbers": {"mean": ["a", "b", "c"]},
    "TypeError": {"mean": 0.5},
    r"mean is \[0\.5, 0\.5, nan\], which no images have": {"mean": [0.5, 0.5, float("nan")]},
    r"std is \[0\.5, 0, 0\.5\], which no images have": {"std": [0.5, 0, 0.5]},
}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(WORLD.clip, tmp_path / "clip")


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_folder_is_one_line(folder, words):
    DAMAGES[words](folder)
    with pytest.raises(ValueError, match=f"clip' is damaged, or needs another version .*{words}") as caught:
        load_clip(str(folder), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", WRONG_COLOURS)
def test_colours_that_no_images_have_are_one_line(folder, words):
    configured("preprocess_cfg", **WRONG_COLOURS[words])(folder)
    with pytest.raises(ValueError, match=f"open_clip_config.json: .*{words}.*download the folder again") as e:
        load_clip(str(folder), None)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_folder_is_not_called_damaged_where_memory_runs_out(folder, monkeypatch, error):
    import open_clip

    def create_model(*args, **options):
        raise error

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(type(error)):
        load_clip(str(folder), None)
