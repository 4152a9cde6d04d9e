"""Weights of DALL·E mini and Mega: layouts, strictness, damage, memory, safetensors."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from memory_peak import alone, peak_growth
from published_models import (
    MEGA,
    MERGES,
    MINI,
    NO_SCALE,
    VOCAB,
    Published,
    random_published,
    reduce_presets,
    without_scales,
    write_published,
)
from safetensors.torch import save_file
from tiny_models import TINY, randomise
from torch import nn

from dalle_ppo.build.models import PUBLISHED_SETTINGS, find_world, load_model
from dalle_ppo.build.trainer import build_trainer
from dalle_ppo.config.model import ModelConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder
from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.dalle.weight_files import find_weight_files
from dalle_ppo.models.dalle.weights import load_weights, save_weights

CPU = torch.device("cpu")
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(scope="module")
def mini() -> Published:
    return random_published(MINI)


@pytest.fixture(autouse=True)
def reduced(monkeypatch):
    reduce_presets(monkeypatch)


def on_meta(build, *arguments) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments)


def tiny_decoder_file(path: Path, **changes) -> dict:
    """A published decoder of the smallest size; a change of None removes a tensor."""
    tensors = without_scales(randomise(BartDecoder(TINY)).state_dict())
    tensors = {name: value for name, value in (tensors | changes).items() if value is not None}
    torch.save(tensors, path)
    return tensors


def problem(path: Path) -> str:
    """The one line that a file of the tiny decoder costs."""
    with pytest.raises(ValueError) as caught:
        load_weights(on_meta(BartDecoder, TINY), path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 1500
    return text


def holds(network: nn.Module, tensors: dict, dtype: torch.dtype = torch.float32) -> None:
    """The network has the file's values, and ones where the file has none."""
    for name, value in network.state_dict().items():
        expected = tensors[name].to(dtype) if name in tensors else torch.ones_like(value)
        assert value.dtype == dtype and torch.equal(value, expected), name
        assert name in tensors or name.removesuffix(".weight").endswith(NO_SCALE)


# --- where files lie


@pytest.mark.parametrize("layout", ["hub", "disk"])
@pytest.mark.parametrize("preset", ["mini", "mega"])
def test_a_folder_in_either_layout(layout, preset, tmp_path):
    published = random_published(BART_PRESETS[preset], seed=3)
    model = load_model(str(write_published(tmp_path, published, layout, preset)), CPU)
    holds(model.parts.encoder, published.encoder)
    holds(model.decoder, published.decoder)
    holds(model.parts.vqgan, published.detoker)
    assert model.parts.tokenizer.vocab == VOCAB
    assert model.files.preset == preset and model.world is None and model.settings == PUBLISHED_SETTINGS
    assert not any(p.requires_grad for p in model.decoder.parameters()) and not model.decoder.training


@pytest.mark.parametrize("layout", ["hub", "disk"])
def test_a_folder_of_both_models_needs_to_be_told_which(layout, mini, tmp_path):
    mega = random_published(MEGA, seed=7)
    write_published(tmp_path, mini, layout, "mini")
    write_published(tmp_path, mega, layout, "mega")
    with pytest.raises(ValueError, match=f"{tmp_path}/mini or {tmp_path}/mega"):
        load_model(str(tmp_path), CPU)
    holds(load_model(f"{tmp_path}/mini", CPU).decoder, mini.decoder)
    holds(load_model(f"{tmp_path}/mega", CPU).decoder, mega.decoder)


def test_the_packages_own_folder_of_a_model(mini, tmp_path):
    write_published(tmp_path, mini, "disk", "mini")
    files = find_weight_files(tmp_path / "dalle_bart_mini")
    assert files.preset == "mini" and files.detoker == tmp_path / "vqgan" / "detoker.pt"


def test_missing_files_are_listed_and_other_folders_are_none(mini, tmp_path):
    write_published(tmp_path, mini)
    for name in ("decoder_mini.pt", "merges_mini.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"lacks decoder_mini\.pt, merges_mini\.txt of DALL·E mini"):
        find_world(str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert find_weight_files(tmp_path / "empty") is None
    with pytest.raises(ValueError, match="neither builtin, mini nor mega"):
        find_world(str(tmp_path / "empty"))


def test_a_vocabulary_of_another_model(mini, tmp_path):
    write_published(tmp_path, mini)
    (tmp_path / "vocab_mini.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 90000}')
    (tmp_path / "merges_mini.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"vocab_mini\.json: 90001 ids .* at most"):
        load_model(str(tmp_path), CPU)


def test_entries_that_no_merge_makes_may_lie_past_the_encoders_rows(mini, tmp_path):
    """As in mini's published vocabulary: 50 265 ids, the last of them `<mask>`, for 50 264 rows."""
    write_published(tmp_path, mini)
    rows = MINI.text_vocab_count
    (tmp_path / "vocab_mini.json").write_text(json.dumps(VOCAB | {"<mask>": rows}), encoding="utf8")
    tokenizer = load_model(str(tmp_path), CPU).parts.tokenizer
    assert max(max(tokenizer.tokenize(text)) for text in ("<mask>", "a <mask> boat")) < rows
    merged = MERGES[-1].replace(" ", "")
    (tmp_path / "vocab_mini.json").write_text(json.dumps(VOCAB | {merged: rows}), encoding="utf8")
    with pytest.raises(ValueError, match=rf"vocab_mini\.json: {rows + 1} ids"):
        load_model(str(tmp_path), CPU)


# --- strict


def test_exactly_the_norms_without_a_scale_are_filled(tmp_path):
    """Every other tensor may not be absent, nor may the biases of these norms."""
    file, whole = tmp_path / "decoder.pt", BartDecoder(TINY).state_dict()
    filled = {name for name in whole if name not in tiny_decoder_file(file)}
    layer = ("pre_self_attn_layer_norm", "pre_encoder_attn_layer_norm", "glu.ln0", "glu.ln1")
    assert filled == {f"layers.{i}.{norm}.weight" for i in (0, 1) for norm in layer} | {"final_ln.weight"}
    holds(load_weights(on_meta(BartDecoder, TINY), file), torch.load(file, weights_only=True))
    for name in sorted(set(whole) - filled):
        tiny_decoder_file(file, **{name: None})
        assert f"missing {name}" in problem(file)


def test_a_scale_that_is_there_is_used(tmp_path):
    file, scale = tmp_path / "decoder.pt", torch.full((TINY.width,), 3.0)
    tensors = tiny_decoder_file(file, **{"final_ln.weight": scale})
    holds(load_weights(on_meta(BartDecoder, TINY), file), tensors)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"layers.9.fc.weight": torch.zeros(2)}, "unexpected layers.9.fc.weight"),
        ({"final_ln.bias": torch.zeros(3)}, r"misshapen final_ln.bias \[3\] float32 instead of \[16\]"),
        ({"final_ln.bias": torch.zeros(16, dtype=torch.int64)}, r"final_ln.bias \[16\] int64"),
        ({"lm_head.weight": None, "final_ln.bias": None}, "missing final_ln.bias, lm_head.weight"),
        ({"lm_head.weight": None, "x": torch.ones(1)}, "missing lm_head.weight; unexpected x"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, words, tmp_path):
    tiny_decoder_file(tmp_path / "decoder.pt", **changes)
    assert re.search(words, problem(tmp_path / "decoder.pt"))


def test_a_file_of_another_network_stays_readable(tmp_path):
    torch.save(BartEncoder(MINI).state_dict(), tmp_path / "decoder.pt")
    assert "more" in problem(tmp_path / "decoder.pt")


@pytest.mark.parametrize("stored", FLOATS, ids=str)
@pytest.mark.parametrize("wanted", FLOATS[:3], ids=str)
def test_any_float_dtype(stored, wanted, tmp_path):
    tensors = {name: value.to(stored) for name, value in tiny_decoder_file(tmp_path / "decoder.pt").items()}
    torch.save(tensors, tmp_path / "decoder.pt")
    decoder = load_weights(on_meta(BartDecoder, TINY), tmp_path / "decoder.pt", dtype=wanted)
    holds(decoder, tensors, wanted)


# --- damage


class Code:
    def __reduce__(self):
        return os.system, ("echo ran > ran.txt",)


@pytest.mark.parametrize("key", ["final_ln.bias", "code"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_carry_code_are_refused(key, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = tiny_decoder_file(tmp_path / "decoder.pt") | {key: Code()}
    torch.save(tensors, tmp_path / "decoder.pt", _use_new_zipfile_serialization=zipped)
    text = problem(tmp_path / "decoder.pt")
    assert "refused" in text and ("system" in text or not zipped)
    assert not (tmp_path / "ran.txt").exists()


def test_other_objects_than_tensors(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "refused" in problem(tmp_path / "module.pt")
    for value in ([torch.zeros(2)], {"a": 3}, {1: torch.zeros(2)}, torch.zeros(2)):
        torch.save(value, tmp_path / "value.pt")
        assert "no dictionary of tensors" in problem(tmp_path / "value.pt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files(share, suffix, tmp_path):
    path = tmp_path / f"decoder{suffix}"
    save_weights(randomise(BartDecoder(TINY)), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    text = problem(path)
    assert "cut short or damaged" in text and "expected a file of tensors of about 0 MB" in text


def test_one_damaged_byte_in_any_part_of_a_file(tmp_path):
    path = tmp_path / "decoder.pt"
    tiny_decoder_file(path)
    content = path.read_bytes()
    for place in [content.index(b"data.pkl") + 300, len(content) // 3, len(content) // 2]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        assert "damaged" in problem(path)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html>", b"Entry not found", b"version https://git-lfs.github.com/spec/v1\noid"]
)
def test_what_lies_in_place_of_weights(content, tmp_path):
    (tmp_path / "decoder.pt").write_bytes(content)
    assert content[:10].decode() in problem(tmp_path / "decoder.pt")


def test_an_absent_file(tmp_path):
    assert "does not exist" in problem(tmp_path / "decoder.pt")


# --- saving, memory


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_saved_weights_load_again(suffix, dtype, tmp_path):
    original = randomise(BartDecoder(TINY))
    save_weights(original, tmp_path / f"decoder{suffix}", dtype)
    again = load_weights(on_meta(BartDecoder, TINY), tmp_path / f"decoder{suffix}")
    holds(again, {name: value.to(dtype) for name, value in original.state_dict().items()})


def test_safetensors_in_place_of_torch_files(mini, tmp_path):
    write_published(tmp_path, mini, "disk")
    for path in tmp_path.rglob("*.pt"):
        save_file(torch.load(path, weights_only=True), path.with_suffix(".safetensors"))
        path.unlink()
    holds(load_model(str(tmp_path), CPU).decoder, mini.decoder)


def blocks() -> nn.Module:
    return nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(24))


def growth_while_loading(path: Path) -> int:
    load_weights(on_meta(nn.Linear, 2, 2), path.with_stem("small"))  # what a first call touches for good
    return peak_growth(lambda: load_weights(on_meta(blocks), path))[0]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_memory_stays_below_weights_plus_one_tensor(suffix, tmp_path):
    path = tmp_path / f"blocks{suffix}"
    save_weights(on_meta(blocks).to_empty(device="cpu"), path, torch.float16)
    save_weights(nn.Linear(2, 2), path.with_stem("small"), torch.float16)
    grown, one_tensor = alone(growth_while_loading, path), 1024 * 1024 * 4
    assert 24 * one_tensor < grown < 25.5 * one_tensor, "the file's own 12 must not be there, too"


# --- settings


def test_the_model_is_loaded_in_the_dtype_asked_for(mini, tmp_path):
    model = load_model(str(write_published(tmp_path, mini)), CPU, dtype=torch.bfloat16)
    kinds = [
        next(part.parameters()).dtype for part in (model.decoder, model.parts.encoder, model.parts.vqgan)
    ]
    assert kinds == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_the_builtin_detector_does_not_judge_other_pictures(mini, tmp_path):
    path = str(write_published(tmp_path / "weights", mini))
    with pytest.raises(
        ValueError,
        match=r"clip\.model and detector of reward term nsfw: builtin, which knows the built-in world",
    ):
        build_trainer(Config(model=ModelConfig(path=path)), tmp_path / "run")


def test_a_vqgan_of_another_size(mini, tmp_path):
    wrong = Published(
        mini.encoder, mini.decoder, randomise(VqganDecoder(VQGAN_PRESETS["iconworld"])).state_dict()
    )
    with pytest.raises(ValueError, match=r"detoker\.pt does not fit"):
        load_model(str(write_published(tmp_path, wrong)), CPU)
