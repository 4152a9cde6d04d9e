"""Original Flax checkpoints become a folder that `--model` takes, VQGAN encoder included; photos train it."""

import json
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from PIL import Image
from published_models import (
    MERGES,
    SMALL,
    SMALL_VQGAN,
    VOCAB,
    reduce_presets,
    without_scales,
)
from scripts import load_script
from tiny_models import randomise

from dalle_ppo import pretrain
from dalle_ppo.build.models import load_model
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder
from dalle_ppo.models.dalle.flax_weights import read_flax
from dalle_ppo.models.dalle.vqgan import VqganDecoder, VqganEncoder
from dalle_ppo.models.dalle.weight_files import find_weight_files
from dalle_ppo.models.dalle.weights import load_vqgan_encoder

ROOT = Path(__file__).parents[3]


def packed(tree) -> bytes:
    """A tree of arrays as Flax writes it: https://github.com/google/flax/blob/main/flax/serialization.py."""

    def extension(array: np.ndarray) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))

    return msgpack.packb(tree, default=extension, strict_types=True)


def array(state: dict, name: str, *axes: int) -> np.ndarray:
    value = state.pop(name).numpy()
    return np.ascontiguousarray(value.transpose(axes)) if axes else value


def stacked(state: dict, name: str, layers: int, transpose: bool = False) -> np.ndarray:
    """A weight of all layers in one array, as `nn.scan` keeps it."""
    values = [state.pop(f"layers.{i}.{name}").numpy() for i in range(layers)]
    return np.stack([value.T if transpose else value for value in values])


def norm_of(state: dict, name: str, layers: int) -> dict[str, np.ndarray]:
    found = {"bias": stacked(state, f"{name}.bias", layers)}
    if f"layers.0.{name}.weight" in state:
        found["scale"] = stacked(state, f"{name}.weight", layers)
    return found


def attention_of(state: dict, name: str, layers: int) -> dict[str, dict]:
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return {p: {"kernel": stacked(state, f"{name}.{p}.weight", layers, True)} for p in projections}


def side_of(state: dict, layers: int, name: str) -> dict:
    """A half of DALL·E as the Flax checkpoint nests it."""
    norms = ["pre_self_attn_layer_norm", "self_attn_layer_norm"]
    attentions = ["self_attn"]
    if name == "Decoder":
        norms += ["pre_encoder_attn_layer_norm", "encoder_attn_layer_norm"]
        attentions += ["encoder_attn"]
    block = {f"LayerNorm_{i}": norm_of(state, norm, layers) for i, norm in enumerate(norms)}
    block |= {f"FlaxBartAttention_{i}": attention_of(state, a, layers) for i, a in enumerate(attentions)}
    block["GLU_0"] = {f"LayerNorm_{i}": norm_of(state, f"glu.ln{i}", layers) for i in range(2)} | {
        f"Dense_{i}": {"kernel": stacked(state, f"glu.fc{i}.weight", layers, True)} for i in range(3)
    }
    tree = {
        "embed_tokens": {"embedding": array(state, "embed_tokens.weight")},
        "embed_positions": {"embedding": array(state, "embed_positions.weight")},
        "layernorm_embedding": {
            "scale": array(state, "layernorm_embedding.weight"),
            "bias": array(state, "layernorm_embedding.bias"),
        },
        "final_ln": {"bias": array(state, "final_ln.bias")},
        "layers": {f"FlaxBart{name}Layers": block},
    }
    return tree


def dalle_of(encoder: dict, decoder: dict, config) -> dict:
    encoder, decoder = dict(encoder), dict(decoder)
    head = array(decoder, "lm_head.weight", 1, 0)
    sides = {
        "encoder": side_of(encoder, config.num_encoder_layers or config.num_layers, "Encoder"),
        "decoder": side_of(decoder, config.num_layers, "Decoder"),
    }
    assert not encoder and not decoder, "every tensor has a place"
    return {"lm_head": {"kernel": head}, "model": sides}


def vqgan_of(encoder: dict, decoder: dict) -> dict:
    """Modules in lists are numbered with an underscore; images come last-channel."""
    tree: dict = {}
    decoder = dict(decoder)
    tree["quantize"] = {"embedding": {"embedding": array(decoder, "embedding.weight")}}
    for name, value in {**encoder, **decoder}.items():
        parts = name.split(".")
        for i in range(len(parts) - 1, 0, -1):
            if parts[i].isdigit():
                parts[i - 1 : i + 1] = [f"{parts[i - 1]}_{parts[i]}"]
        if value.dim() == 4:
            parts[-1], value = "kernel", value.permute(2, 3, 1, 0)
        elif "norm" in parts[-2]:
            parts[-1] = {"weight": "scale", "bias": "bias"}[parts[-1]]
            value = value[None, None, None]
        place = tree
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = np.ascontiguousarray(value.numpy())
    return tree


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """The two folders, and the states that are in them."""
    reduce_presets(monkeypatch, SMALL, SMALL_VQGAN)
    networks = (BartEncoder(SMALL), BartDecoder(SMALL), VqganEncoder(SMALL_VQGAN), VqganDecoder(SMALL_VQGAN))
    states = [without_scales(randomise(network, i).state_dict()) for i, network in enumerate(networks)]
    for folder, tree in (
        ("dalle", dalle_of(*states[:2], SMALL)),
        ("vqgan", vqgan_of(*states[2:])),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "flax_model.msgpack").write_bytes(packed(tree))
    (tmp_path / "dalle" / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf8")
    (tmp_path / "dalle" / "merges.txt").write_text("\n".join(["#version", *MERGES, ""]), encoding="utf8")
    return tmp_path, states


def convert(folder: Path, *options: str) -> int:
    module = load_script(ROOT / "converters" / "flax_to_safetensors.py")
    sys.argv = ["convert", "--dalle", f"{folder}/dalle", "--vqgan", f"{folder}/vqgan", *options]
    return module.main()


@pytest.fixture
def converted(checkpoints, monkeypatch):
    folder, states = checkpoints
    monkeypatch.setattr(sys, "argv", [])
    assert convert(folder, "--out", f"{folder}/out", "--dtype", "float32") == 0
    return folder / "out", states


def test_every_tensor_arrives_where_it_belongs(converted):
    folder, states = converted
    model = load_model(str(folder), torch.device("cpu"))
    assert model.parts.tokenizer.vocab_size == len(VOCAB)
    vqgan_encoder = load_vqgan_encoder(find_weight_files(folder))
    loaded = (model.parts.encoder, model.decoder, vqgan_encoder, model.parts.vqgan)
    for network, state in zip(loaded, states, strict=True):
        now = network.state_dict()
        assert all(torch.equal(now[name], value) for name, value in state.items())
        assert all((now[name] == 1).all() for name in now.keys() - state.keys()), "scales that are not there"


def test_photos_train_a_converted_model(converted, tmp_path, capsys):
    folder, _ = converted
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(photos / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": "a red boat"}) for i in range(4)]
    lines[0] = json.dumps({"file_name": "0.png", "text": "boat " * 100})
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    arguments = ["--model", str(folder), "--data", str(photos), "--num_steps", "2", "--batch_size", "4"]
    out = tmp_path / "tuned"
    assert pretrain.main([*arguments, "--out", str(out), "--device", "cpu"]) == 0
    assert "1 of 4 captions are longer than 64 tokens" in capsys.readouterr().out
    before, after = (load_model(str(path), torch.device("cpu")) for path in (folder, out))
    assert not torch.equal(before.decoder.lm_head.weight, after.decoder.lm_head.weight)
    assert torch.equal(before.parts.vqgan.embedding.weight, after.parts.vqgan.embedding.weight)
    assert find_weight_files(out).vqgan_encoder is not None, "and it can be trained further"


@pytest.mark.parametrize("model, words", [("mini", "flax_to_safetensors"), ("{}", "VQGAN|vqgan_encoder")])
def test_without_the_vqgans_encoder_photos_are_refused(model, words, converted, tmp_path):
    folder, _ = converted
    (folder / "vqgan_encoder.safetensors").unlink()
    arguments = ["--model", model.format(folder), "--data", str(tmp_path), "--out", str(tmp_path / "new")]
    with pytest.raises(ValueError, match=words):
        pretrain.main(arguments)
    assert not (tmp_path / "new").exists()


def test_builtin_scenes_are_refused_for_another_vqgan(converted, tmp_path, monkeypatch):
    folder, _ = converted
    monkeypatch.setattr("dalle_ppo.iconworld.scenes.IMAGE_SIZE", 63)
    with pytest.raises(ValueError, match="give --data a folder of images"):
        pretrain.main(["--model", str(folder), "--out", str(tmp_path / "new")])


def broken(kind: str, path: Path) -> None:
    whole = path.read_bytes()
    tree = {"encoder": {"conv_in": {"bias": np.arange(3)}}}
    contents = {
        "cut": whole[:-100],
        "text": b"version https://git-lfs.github.com/spec/v1",
        "integers": packed(tree),
        "another tensor": packed({"encoder": {"conv_in": {"bias": np.zeros(3, np.float32)}}}),
    }
    if kind == "absent":
        path.unlink()
    else:
        path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    "kind, words",
    [
        ("absent", "does not exist"),
        ("cut", "cut short or damaged"),
        ("text", "not a Flax checkpoint"),
        ("integers", "array of int64"),
        ("another tensor", "missing"),
    ],
)
@pytest.mark.parametrize("which", ["dalle", "vqgan"])
def test_a_broken_checkpoint_is_one_line_and_leaves_nothing(
    kind, words, which, checkpoints, capsys, monkeypatch
):
    folder, _ = checkpoints
    monkeypatch.setattr(sys, "argv", [])
    broken(kind, folder / which / "flax_model.msgpack")
    if which == "dalle" and kind == "another tensor":
        words = "0 decoder layers"
    assert convert(folder, "--out", f"{folder}/out") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and words in message and which in message
    assert {path.name for path in folder.iterdir()} == {"dalle", "vqgan"}


def test_a_file_that_flax_itself_wrote_is_read():
    """Written by flax 0.12's `serialization.to_bytes`, with chunks of 64 bytes: see the values' formulas."""
    tensors = read_flax(Path(__file__).parents[2] / "fixtures" / "flax" / "arrays.msgpack")
    assert sorted(tensors) == ["deep.bfloat16", "deep.float16", "deep.float32", "large"]
    grid = torch.arange(12).reshape(3, 4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(tensors[f"deep.{str(dtype).removeprefix('torch.')}"], (grid / 8).to(dtype))
    assert torch.equal(tensors["large"], torch.arange(60.0).reshape(3, 4, 5))
