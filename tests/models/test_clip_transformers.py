"""Folders in transformers' layout, as transformers' own processor and model compute them."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers_folders import CONTEXT, write_clip, write_naflex, write_siglip

from dalle_ppo.models.clip import load_clip

CAPTIONS = ["a red boat", "Two Green skulls", "blue"]
WRITERS = {"clip": write_clip, "siglip": write_siglip, "siglip2": write_naflex}


@pytest.fixture(scope="module", params=WRITERS)
def published(request, tmp_path_factory):
    """(kind, folder, transformers' model)."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return request.param, folder, WRITERS[request.param](folder)


def pictures(height: int = 56, width: int = 56) -> np.ndarray:
    return np.random.default_rng(0).integers(90, 166, (3, height, width, 3), dtype=np.uint8)


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def normalised(found) -> torch.Tensor:
    return torch.nn.functional.normalize(found.pooler_output, dim=-1)


@pytest.mark.parametrize("size", [(56, 56), (32, 32), (40, 64)])
def test_images_are_those_of_transformers(published, size):
    """Through the folder's image processor: resized, cut out and normalised.

    From 8-bit images transformers rounds each resized one again, from floats it does not. No picture here is
    dark or bright enough for bicubic interpolation to leave 0..1, where PIL clips and floats go on.
    """
    kind, folder, model = published
    images = pictures(*size)
    processor = {
        "clip": transformers.CLIPImageProcessor,
        "siglip": transformers.SiglipImageProcessor,
        "siglip2": transformers.Siglip2ImageProcessor,
    }[kind].from_pretrained(folder)
    floats = processor(list(as_tensor(images)), do_rescale=False, return_tensors="pt")
    rounded = processor([Image.fromarray(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        exact, close = (normalised(model.get_image_features(**inputs)) for inputs in (floats, rounded))
    clip = load_clip(str(folder), None)
    found = clip.embed_images(as_tensor(images))
    if kind == "siglip2":  # its processor resizes here too
        exact = close
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    assert (found * close).sum(dim=1).min() > 0.999
    assert (clip.name, clip.pretrained) == ("model", "local") and found.dtype == torch.float32
    assert (found[0] - found[1]).norm() > 1e-3, "else any preprocessing would do"


def test_texts_are_those_of_transformers(published):
    kind, folder, model = published
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # SigLIP was trained on lower case, padded to the end, without a mask (open_clip issue 984).
    texts = CAPTIONS if kind == "clip" else [text.lower() for text in CAPTIONS]
    padding = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": CONTEXT}
    inputs = tokenizer(texts, return_tensors="pt", truncation=True, **padding)
    mask = {"attention_mask": inputs["attention_mask"]} if kind == "clip" else {}
    with torch.no_grad():
        expected = normalised(model.get_text_features(input_ids=inputs["input_ids"], **mask))
    clip = load_clip(str(folder), None)
    torch.testing.assert_close(clip.embed_texts(CAPTIONS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.embed_texts(CAPTIONS[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).norm() > 1e-3


def test_a_text_longer_than_the_model_reads_is_cut(published):
    clip = load_clip(str(published[1]), None)
    long = "abcdefghij" * 5
    torch.testing.assert_close(
        clip.embed_texts([long]), clip.embed_texts([long + "xyz"]), rtol=1e-4, atol=1e-5
    )


def test_without_a_file_of_preprocessing_the_config_gives_the_size(published, tmp_path):
    """As published: OpenAI's mean for CLIP, 0.5 for SigLIP."""
    kind, folder, model = published
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    pixels = as_tensor(pictures(32, 32))
    mean, std = (transformers.image_utils.OPENAI_CLIP_MEAN, transformers.image_utils.OPENAI_CLIP_STD)
    if kind != "clip":
        mean = std = (0.5, 0.5, 0.5)
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    inputs = {"pixel_values": pixels}
    if kind == "siglip2":
        patches = pixels.reshape(3, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(3, 16, 192)
        mask = torch.ones(3, 16, dtype=torch.int32)
        inputs = {"pixel_values": patches, "pixel_attention_mask": mask}
        inputs["spatial_shapes"] = torch.full((3, 2), 4)
    with torch.no_grad():
        expected = normalised(model.get_image_features(**inputs))
    found = load_clip(str(bare), None).embed_images(as_tensor(pictures(32, 32)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_in_the_file_is_computed_in_float32(tmp_path):
    write_clip(tmp_path).half().save_pretrained(tmp_path)
    clip = load_clip(str(tmp_path), None)
    assert {parameter.dtype for parameter in clip.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("hidden_act, said", [("quick_gelu", False), ("gelu", True)])
def test_the_config_tells_the_activation(tmp_path, hidden_act, said):
    write_clip(tmp_path, hidden_act)
    load_clip(str(tmp_path), None, "cpu", not said)
    with pytest.raises(ValueError, match=r"clip\.quick_gelu is .*config\.json says"):
        load_clip(str(tmp_path), None, "cpu", said)


def damage(folder, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(weights)
    if how == "another kind":
        config.write_text('{"model_type": "clip_vision_model"}')
    elif how == "no json":
        config.write_text("model_type: clip")
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "cut off":
        weights.write_bytes(weights.read_bytes()[:50])
    elif how == "a weight less":
        save_file(dict(list(tensors.items())[1:]), weights, metadata={"format": "pt"})
    elif how == "a weight more":
        save_file(tensors | {"visual_projection.bias": torch.zeros(24)}, weights, metadata={"format": "pt"})
    elif how == "another vocabulary":
        settings = json.loads(config.read_text())
        settings["text_config"]["vocab_size"] = 20
        config.write_text(json.dumps(settings))
        name = "text_model.embeddings.token_embedding.weight"
        save_file(tensors | {name: tensors[name][:20]}, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "how, words",
    [
        ("another kind", "model_type 'clip_vision_model'.*give a folder in open_clip's layout"),
        ("no json", "not JSON"),
        ("no tokenizer", "no tokenizer .*next to config.json"),
        ("no weights", "the model cannot be read"),
        ("cut off", "the model cannot be read"),
        ("a weight less", "1 missing keys"),
        ("a weight more", "1 unexpected keys.*visual_projection.bias"),
        ("another vocabulary", "its tokenizer has 106 tokens, the model 20"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_way_out(tmp_path, how, words):
    write_clip(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(ValueError, match=words) as caught:
        load_clip(str(tmp_path), None)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_tokenizer_that_needs_a_package_names_it(tmp_path, monkeypatch):
    """SigLIP's is a SentencePiece model."""
    write_siglip(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "spiece.model").write_bytes(b"no model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    monkeypatch.setattr("dalle_ppo.models.clip_transformers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install sentencepiece"):
        load_clip(str(tmp_path), None)


def test_a_folder_holds_its_weights(tmp_path):
    write_clip(tmp_path)
    with pytest.raises(ValueError, match=r"clip\.pretrained is 'openai', but .* leave clip\.pretrained out"):
        load_clip(str(tmp_path), "openai")
