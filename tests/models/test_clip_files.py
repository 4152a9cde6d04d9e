"""Weights from files of one's own: the right activation and preprocessing, or one line that asks."""

import argparse
import hashlib
import json
import re
import shlex
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from safetensors.torch import save_file

from dalle_ppo.build.named_clip import open_named_clip
from dalle_ppo.config.clip import ClipConfig
from dalle_ppo.config.clip_options import add_clip_options
from dalle_ppo.evaluation.heldout import load_heldout
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.clip_config import rename_settings
from dalle_ppo.models.clip_files import WeightFile, choose_activation, choose_preprocessing

NAME = "ViT-B-32"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.get_tokenizer(NAME)


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch, tokenizer):
    """open_clip's names with small sizes, and one tokenizer, which takes half a second to load."""
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: tokenizer)
    for name in (NAME, "ViT-L-14", "ViT-S-16", "PE-Core-B-16"):
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, TINY)
    monkeypatch.setitem(factory._MODEL_CONFIGS, f"{NAME}-quickgelu", TINY | {"quick_gelu": True})


def model(quick_gelu: bool) -> torch.nn.Module:
    """The weights of all files here; large, so that the activation shows."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**TINY, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if ".mlp.c_proj.weight" in name:
                parameter.mul_(10)
    return clip


@torch.no_grad()
def expected(quick_gelu: bool, mean=OPENAI_MEAN, std=(0.26862954, 0.26130258, 0.27577711)) -> torch.Tensor:
    mean, std = (torch.tensor(tuple(x))[:, None, None] for x in (mean, std))
    return model(quick_gelu).encode_image((IMAGES - mean) / std, normalize=True)


def assert_loads(path: Path, quick_gelu: bool, name: str = NAME, said: bool | None = None):
    clip = load_clip(name, str(path), "cpu", said)
    torch.testing.assert_close(clip.embed_images(IMAGES), expected(quick_gelu), rtol=1e-4, atol=1e-5)
    return clip


class Archive(torch.nn.Module):
    """OpenAI's archive: the model in half precision and three numbers beside its weights."""

    def __init__(self, clip: torch.nn.Module):
        super().__init__()
        for name, child in clip.named_children():
            setattr(self, name, child)
        self.positional_embedding, self.logit_scale = clip.positional_embedding, clip.logit_scale
        self.text_projection = clip.text_projection
        for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(number))

    def forward(self, image):
        return self.visual(image)


def write_archive(path: Path, quick_gelu: bool) -> None:
    archive = Archive(model(quick_gelu)).eval()
    torch.jit.trace(archive, IMAGES[:1], check_trace=False).save(str(path))


def test_the_activation_shows():
    assert (expected(True) - expected(False)).norm(dim=1).min() > 0.003


# --- what tells


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_torchscript_archive_tells_by_its_code(tmp_path, quick_gelu):
    write_archive(tmp_path / "ViT-B-32.pt", quick_gelu)
    assert_loads(tmp_path / "ViT-B-32.pt", quick_gelu)
    with pytest.raises(ValueError, match="archive's code"):
        load_clip(NAME, str(tmp_path / "ViT-B-32.pt"), "cpu", not quick_gelu)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_openais_layout_is_quick_gelu(tmp_path, suffix):
    """The archive's state dict, as many copies hold it: with three numbers beside the weights."""
    path, state = tmp_path / f"weights{suffix}", Archive(model(True)).state_dict()
    assert "input_resolution" in state
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    assert_loads(path, True)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_configuration_beside_the_file_tells(tmp_path, quick_gelu):
    """As downloaded from the hub."""
    path = tmp_path / "open_clip_model.safetensors"
    save_file(model(quick_gelu).state_dict(), path)
    config = {"model_cfg": TINY | ({"quick_gelu": True} if quick_gelu else {}), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert_loads(path, quick_gelu)


def test_the_name_tells(tmp_path):
    torch.save(model(True).state_dict(), tmp_path / "mine.pt")
    assert_loads(tmp_path / "mine.pt", True, f"{NAME}-quickgelu")
    with pytest.raises(ValueError, match="the name ViT-B-32-quickgelu"):
        load_clip(f"{NAME}-quickgelu", str(tmp_path / "mine.pt"), "cpu", False)


def test_a_model_without_published_quick_gelu_is_gelu(tmp_path):
    torch.save(model(False).state_dict(), tmp_path / "mine.pt")
    assert_loads(tmp_path / "mine.pt", False, "ViT-S-16")
    assert_loads(tmp_path / "mine.pt", True, "ViT-S-16", said=True)


@pytest.mark.parametrize("tag, quick_gelu", [("openai", True), ("laion2b_e16", False)])
def test_the_hash_of_published_weights_tells(tmp_path, monkeypatch, tag, quick_gelu):
    path = tmp_path / "renamed.pt"
    torch.save(model(quick_gelu).state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    last = f"{sha256}/ViT-B-32.pt" if tag == "openai" else f"v0.2/vit_b_32-laion2b_e16-{sha256[:8]}.pt"
    url = f"https://x.org/{last}"
    for known in (pretrained._PRETRAINED[name] for name in (NAME, f"{NAME}-quickgelu")):
        if tag in known:
            monkeypatch.setitem(known, tag, known[tag] | {"url": url})
    clip = assert_loads(path, quick_gelu)
    assert clip.pretrained == tag, "LAION's detectors go by it"


def test_openais_hash_as_open_clip_has_it_is_read():
    """A guard for another version of open_clip: its addresses hold whole hashes for OpenAI's files."""
    url = open_clip.get_pretrained_cfg("ViT-L-14", "openai")["url"]
    assert re.fullmatch(r"[0-9a-f]{64}", url.split("/")[-2])


# --- nothing tells


def checkpoint(kind: str, clip: torch.nn.Module) -> dict:
    state = clip.state_dict()
    if kind == "state dict":
        return state
    if kind == "module.":
        return {f"module.{name}": value for name, value in state.items()}
    if kind == "open_clip's training":
        prefixed = {f"module.{name}": value for name, value in state.items()}
        return {"epoch": 3, "name": "run", "state_dict": prefixed, "optimizer": {"state": {}}}
    return {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}, "loss": 0.5}


@pytest.mark.parametrize("kind", ["state dict", "module.", "open_clip's training", "model_state_dict"])
def test_a_state_dict_is_refused_until_the_user_says(tmp_path, kind):
    path = tmp_path / "epoch_3.pt"
    torch.save(checkpoint(kind, model(True)), path)
    with pytest.raises(ValueError, match=r"set clip\.quick_gelu") as caught:
        load_clip(NAME, str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    for said in (True, False):
        clip = assert_loads(path, said, said=said)
    assert (clip.name, clip.pretrained) == (NAME, str(path))


def test_commands_take_the_activation_too(tmp_path):
    """What the error says can be given as it is named there."""
    torch.save(model(True).state_dict(), tmp_path / "mine.pt")
    parser = argparse.ArgumentParser()
    add_clip_options(parser)
    words = ["--clip_model", NAME, "--clip_pretrained", str(tmp_path / "mine.pt")]
    with pytest.raises(ValueError, match="set --quick_gelu to true") as caught:
        open_named_clip(parser.parse_args(words), torch.device("cpu"))
    assert f"--clip_pretrained {tmp_path}" in str(caught.value) and "clip.quick" not in str(caught.value)
    for said in (True, False):
        args = parser.parse_args([*words, "--quick_gelu", str(said).lower()])
        found = open_named_clip(args, torch.device("cpu")).embed_images(IMAGES)
        torch.testing.assert_close(found, expected(said), rtol=1e-4, atol=1e-5)


def test_the_held_out_clip_is_named_by_its_own_settings(tmp_path):
    torch.save(model(True).state_dict(), tmp_path / "mine.pt")
    heldout = ClipConfig(NAME, str(tmp_path / "mine.pt"))
    with pytest.raises(ValueError, match=r"set evaluation\.heldout_clip\.quick_gelu to true"):
        load_heldout(heldout, None, torch.device("cpu"))


def test_paths_in_a_message_are_no_settings():
    told = rename_settings("clip.pretrained my/clip.model.pt is bad; set clip.model", "--clip_{}".format)
    assert told == "--clip_pretrained my/clip.model.pt is bad; set --clip_model"


def test_safetensors_are_refused_until_the_user_says(tmp_path):
    save_file(model(True).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"set clip\.quick_gelu"):
        load_clip(NAME, str(tmp_path / "a.safetensors"))
    assert_loads(tmp_path / "a.safetensors", True, said=True)


def test_names_without_any_published_quick_gelu():
    """The rule's facts, from open_clip's own table."""
    plain = WeightFile(Path("a.pt"), None)
    for name in ("ViT-B-16-SigLIP", "ViT-g-14", "EVA02-L-14", "MobileCLIP-S1"):
        assert choose_activation(name, plain, {}, {}, None) is False
    for name in ("RN50", "ViT-B-16", "ViT-L-14-336", "ViT-H-14"):
        with pytest.raises(ValueError, match=r"clip\.quick_gelu"):
            choose_activation(name, plain, {}, {}, None)


# --- preprocessing


@pytest.mark.parametrize(
    "name, mean, interpolation",
    [
        ("ViT-B-16-SigLIP", 0.5, "bicubic"),
        ("ViT-B-16-SigLIP2", 0.5, "bicubic"),
        ("ViT-L-14-CLIPA", 0.485, "bilinear"),
        ("MobileCLIP-S1", 0.0, "bilinear"),
        ("ViT-g-14", 0.48145466, "bicubic"),
        ("ViT-S-16", 0.48145466, "bicubic"),
    ],
)
def test_preprocessing_is_that_of_the_published_weights(name, mean, interpolation):
    found = choose_preprocessing(name, WeightFile(Path("a.pt"), None), None, False)
    assert (found["mean"][0], found["interpolation"]) == (mean, interpolation)


def test_preprocessing_reaches_the_embeddings(tmp_path):
    torch.save(model(False).state_dict(), tmp_path / "mine.pt")
    clip = load_clip("PE-Core-B-16", str(tmp_path / "mine.pt"))
    half = expected(False, (0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(clip.embed_images(IMAGES), half, rtol=1e-4, atol=1e-5)
    large = torch.rand(2, 3, 50, 50)
    small = torch.nn.functional.interpolate(large, size=32, mode="bilinear", antialias=True)
    torch.testing.assert_close(clip.embed_images(large), clip.embed_images(small), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "MobileCLIP-S1", "PE-Core-B-16"])
def test_images_become_square_as_for_the_published_weights(tmp_path, monkeypatch, name):
    """The oracle is open_clip's own table: SigLIP and PE squash, MobileCLIP crops."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, name, TINY)
    torch.save(model(False).state_dict(), tmp_path / "mine.pt")
    tag = next(tag for other, tag in open_clip.list_pretrained() if other == name)
    mode = open_clip.get_pretrained_cfg(name, tag)["resize_mode"]
    assert load_clip(name, str(tmp_path / "mine.pt")).crops == (mode == "shortest")


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_a_configuration_beside_the_file_says_how_images_become_square(tmp_path, mode):
    torch.save(model(False).state_dict(), tmp_path / "mine.pt")
    config = {"model_cfg": TINY, "preprocess_cfg": {"resize_mode": mode}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert load_clip("PE-Core-B-16", str(tmp_path / "mine.pt")).crops == (mode == "shortest")


def test_only_whoever_crops_is_refused_where_published_weights_differ(tmp_path, monkeypatch):
    """MetaCLIP's ViT-H/14 crops and DFN's squashes; all else is the same."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", TINY)
    torch.save(model(True).state_dict(), tmp_path / "mine.pt")
    clip = assert_loads(tmp_path / "mine.pt", True, "ViT-H-14", said=True)
    with pytest.raises(ValueError, match=r"cropped or from squashed images.*open_clip_config\.json"):
        clip.crops  # noqa: B018


def test_preprocessing_that_nothing_tells_is_refused(tmp_path):
    """LAION-2B's ViT-L/14 has another mean than all others with GELU."""
    path = tmp_path / "mine.pt"
    torch.save(model(False).state_dict(), path)
    assert_loads(path, True, "ViT-L-14", said=True)
    with pytest.raises(ValueError, match=r"differ in the mean of their images.*open_clip_config\.json"):
        load_clip("ViT-L-14", str(path), "cpu", False)
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    found = load_clip("ViT-L-14", str(path)).embed_images(IMAGES)
    torch.testing.assert_close(found, expected(False, (0.5,) * 3, (0.5,) * 3), rtol=1e-4, atol=1e-5)


# --- what safe loading refuses


class Options:
    """An object of the user's own in a checkpoint."""


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("options, trust", [(argparse.Namespace(lr=1e-3), False), (Options(), True)])
def test_a_checkpoint_with_objects_says_how_to_strip_it(tmp_path, options, trust, is_zip):
    """The command in the error is run as it is; the file that it writes loads."""
    path = tmp_path / "fine tuned.pt"
    content = {"state_dict": model(True).state_dict(), "args": options}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match="more than tensors") as caught:
        load_clip(NAME, str(path), "cpu", True)
    message = str(caught.value)
    assert "\n" not in message and ("if you trust the file" in message) == trust
    assert type(options).__name__ in message
    flag, command = shlex.split(re.search(r'python (-c "[^"]*")', message)[1])
    try:
        exec(compile(command, flag, "exec"), {})
    finally:
        torch.serialization.clear_safe_globals()
    assert_loads(tmp_path / "fine tuned.weights.pt", True, said=True)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut off"])
def test_damaged_files_are_one_line(tmp_path, content):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(name)) as caught:
            load_clip(NAME, str(tmp_path / name), "cpu", True)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_files_without_weights_and_of_another_model_are_one_line(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="holds no weights"):
        load_clip(NAME, str(tmp_path / "empty.pt"), "cpu", True)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_clip(NAME, str(tmp_path / "linear.pt"), "cpu", True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


# --- tags and folders


def test_a_tag_tells(monkeypatch):
    with pytest.raises(ValueError, match="open_clip's tag openai says QuickGELU"):
        load_clip(NAME, "openai", "cpu", False)


def test_a_folder_without_weights_is_refused(tmp_path):
    """open_clip alone logs a line and returns a random model."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_clip(str(tmp_path), None)
    save_file(model(False).state_dict(), tmp_path / "open_clip_model.safetensors")
    load_clip(str(tmp_path), None, "cpu", False)
    with pytest.raises(ValueError, match=r"open_clip_config\.json says GELU"):
        load_clip(str(tmp_path), None, "cpu", True)
