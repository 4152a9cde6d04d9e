"""Which CLIP a head belongs to: the one with its embeddings, under any name, and no other."""

import json
import runpy
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers_folders import write_as_transformers

from dalle_ppo.iconworld.captions import TAGS, sample_caption, sample_scene
from dalle_ppo.iconworld.scenes import draw_batch
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.heads import binding
from dalle_ppo.models.heads.binding import add_probes, bind_clip
from dalle_ppo.models.heads.nsfw import (
    head_probability,
    load_detector,
    load_head,
    read_head,
    save_head,
)
from dalle_ppo.models.heads.probes import MIN_COSINE, least_cosine, probe_images

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "docs" / "detectors.md"
WORLD = World()


@pytest.fixture(scope="module")
def clip():
    return load_clip(str(WORLD.clip), None)


@pytest.fixture
def without_probes(tmp_path) -> Path:
    """The built-in detector as it was before it knew its CLIP."""
    path = tmp_path / "plain.safetensors"
    save_head(path, *read_head(WORLD.detector))
    return path


def copied(folder: Path, **changes):
    """The built-in world's CLIP under another name, with other settings of the model."""
    shutil.copytree(WORLD.clip, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"] |= changes
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return load_clip(str(folder), None)


def swapped(folder: Path):
    """The trained weights with the wrong activation."""
    other = copied(folder, quick_gelu=True)
    assert type(other.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    return other


def in_precision(dtype: torch.dtype):
    other = load_clip(str(WORLD.clip), None)
    other.model.to(dtype)
    return other


def in_transformers_layout(folder: Path, hidden_act: str):
    source = load_clip(str(WORLD.clip), None)
    write_as_transformers(folder, source.model, *(source.preprocess[k] for k in ("mean", "std")), hidden_act)
    return load_clip(str(folder), None)


def cosine_of(clip) -> float:
    return least_cosine(load_detector(WORLD.detector).probes, clip.embed_images(probe_images()))


# --- the drawings


def test_the_drawings_are_always_the_same():
    """Changed drawings would make every kept probe wrong; they need another name."""
    images = probe_images()
    assert images.shape == (8, 3, 224, 224) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    levels = (images * 255).round()
    assert torch.equal(levels / 255, images), "8-bit images, so that no layout rounds them"
    weights = torch.arange(1, 8 * 3 * 224 * 224 + 1, dtype=torch.int64) % 1009
    assert (levels.flatten().long() * weights).sum().item() == 99_337_229_087


def test_the_drawings_are_told_apart(clip):
    embeddings = clip.embed_images(probe_images())
    cosines = (embeddings @ embeddings.T)[~torch.eye(8, dtype=torch.bool)]
    assert cosines.max() < 0.95


# --- the same CLIP


def test_the_shipped_detector_keeps_what_its_clip_gives(clip):
    detector = load_detector(WORLD.detector)
    assert detector.probes.shape == (8, detector.info.dimension)
    assert cosine_of(clip) == pytest.approx(1, abs=1e-9)
    bind_clip(detector, clip)


def test_a_copy_under_another_name(tmp_path):
    other = copied(tmp_path / "my_clip")
    assert other.name == "my_clip"
    bind_clip(load_detector(WORLD.detector), other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    bind_clip(load_detector(WORLD.detector), in_precision(dtype))


def test_another_layout(tmp_path):
    """Converted to transformers' names of tensors, computed by transformers, with the same probabilities."""
    other = in_transformers_layout(tmp_path / "converted", "gelu")
    detector = load_detector(WORLD.detector)
    bind_clip(detector, other)
    rng = np.random.default_rng(3)
    scenes = draw_batch([sample_scene(rng, sample_caption(rng, tag, "heldout")) for tag in TAGS])
    images = torch.from_numpy(scenes).permute(0, 3, 1, 2).float() / 255
    found, expected = (
        head_probability(detector, c.embed_images(images)) for c in (other, load_clip(str(WORLD.clip), None))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


# --- another CLIP


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_the_wrong_activation_is_refused(tmp_path, layout):
    folder = tmp_path / "other"
    other = swapped(folder) if layout == "open_clip" else in_transformers_layout(folder, "quick_gelu")
    with pytest.raises(ValueError, match=r"cosine on the probes is 0\.999\d+ .*clip\.quick_gelu") as caught:
        bind_clip(load_detector(WORLD.detector), other)
    assert "\n" not in str(caught.value)


def test_other_preprocessing_is_refused(clip):
    other = replace(clip, preprocess=clip.preprocess | {"mean": (0.481, 0.458, 0.408)})
    with pytest.raises(ValueError, match="preprocessing"):
        bind_clip(load_detector(WORLD.detector), other)


def test_another_model_is_refused_even_under_the_right_name(tmp_path):
    other = copied(tmp_path / "iconworld_clip")
    torch.manual_seed(1)
    for parameter in other.model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    other.same_as = "iconworld_clip:local"
    with pytest.raises(ValueError, match="returns different ones: their cosine") as caught:
        bind_clip(load_detector(WORLD.detector), other)
    assert "quick_gelu" not in str(caught.value), "that is no near miss"


def test_embeddings_that_are_not_numbers_are_refused(clip):
    detector = load_detector(WORLD.detector)
    detector.probes = torch.full_like(detector.probes, torch.nan)
    with pytest.raises(ValueError, match="cosine on the probes is nan"):
        bind_clip(detector, clip)


def test_another_width_is_refused(clip):
    detector = load_detector(WORLD.detector)
    detector.info = replace(detector.info, dimension=768)
    with pytest.raises(ValueError, match="returns 128 numbers"):
        bind_clip(detector, clip)


def test_the_guide_holds_the_measured_numbers(tmp_path, clip):
    """What the bound lies between, to a digit that other processors keep."""
    text = GUIDE.read_text(encoding="utf-8")
    measured = {
        "the same folder under another name": clip,
        "float16": in_precision(torch.float16),
        "bfloat16": in_precision(torch.bfloat16),
        "converted to transformers' layout": in_transformers_layout(tmp_path / "converted", "gelu"),
        "QuickGELU instead of GELU": swapped(tmp_path / "swapped"),
    }
    for words, other in measured.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {words}"))
        written, found = float(row.split("|")[2]), cosine_of(other)
        assert 1 - found == pytest.approx(1 - written, rel=0.5, abs=2e-7), (words, found)
        assert (written >= MIN_COSINE) == (found >= MIN_COSINE) == (words[:5] != "Quick")
    assert f"{MIN_COSINE}" in text


# --- heads without probes


def test_without_probes_names_decide(without_probes, tmp_path, clip):
    bind_clip(load_detector(without_probes), clip)
    other = copied(tmp_path / "my_clip")
    with pytest.raises(ValueError, match=r"clip\.same_as: iconworld_clip:local"):
        bind_clip(load_detector(without_probes), other)
    other.same_as = "iconworld_clip:local"
    bind_clip(load_detector(without_probes), other)
    other.same_as = "ViT-L-14:openai"
    with pytest.raises(ValueError, match="the CLIP in use is ViT-L-14"):
        bind_clip(load_detector(without_probes), other)


def test_one_line_offers_the_probes_and_its_command_adds_them(without_probes, capsys, monkeypatch):
    """The line is printed once, and its command runs as printed."""
    clip = load_clip(str(WORLD.clip), None, "cpu", None, "iconworld_clip:local")
    binding._has_offered.clear()
    for _ in range(2):
        bind_clip(load_detector(without_probes), clip)
    (line,) = capsys.readouterr().err.splitlines()
    _, script, *arguments = shlex.split(line[line.index("python converters/") :])
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as finished:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert finished.value.code == 0 and "added" in capsys.readouterr().out
    bind_clip(load_detector(without_probes), clip)
    assert not capsys.readouterr().err
    before, after = (load_file(path) for path in (WORLD.detector, without_probes))
    assert before.keys() == after.keys()
    # Another order of additions on another machine changes the last digits of embeddings.
    torch.testing.assert_close(before.pop("probes"), after.pop("probes"), atol=1e-5, rtol=0)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_adding_probes_leaves_the_layers_and_the_rest_as_they_are(without_probes, clip):
    before, info = load_file(without_probes), load_detector(without_probes).info
    x = torch.nn.functional.normalize(torch.randn(20, 128), dim=1)
    expected = load_detector(without_probes)(x)
    assert add_probes(without_probes, clip) and not add_probes(without_probes, clip)
    after = load_file(without_probes)
    assert after.keys() - before.keys() == {"probes"}
    assert all(torch.equal(after[key], before[key]) for key in before)
    detector = load_detector(without_probes)
    assert detector.info == info and torch.equal(detector(x), expected)


def test_probes_of_another_clip_are_not_added(without_probes, tmp_path):
    other = copied(tmp_path / "my_clip", quick_gelu=True)
    with pytest.raises(ValueError, match="the CLIP in use is my_clip"):
        add_probes(without_probes, other)
    with pytest.raises(ValueError, match="returns different ones"):
        add_probes(shutil.copy(WORLD.detector, tmp_path / "bound.safetensors"), other)
    assert "probes" not in load_file(without_probes)


def test_a_head_that_names_no_clip_gets_the_name_with_the_probes(tmp_path, clip):
    specs, info = read_head(WORLD.detector)
    path = tmp_path / "unnamed.safetensors"
    save_head(path, specs, replace(info, clip_model="", clip_pretrained=""))
    with pytest.raises(ValueError, match=r"converters/add_probes\.py"):
        bind_clip(load_detector(path), clip)
    add_probes(path, clip)
    assert load_detector(path).info.clip_model == "iconworld_clip"
    bind_clip(load_detector(path), clip)


def test_a_published_head_keeps_its_probes_in_a_new_file(tmp_path, clip, monkeypatch):
    source, out = tmp_path / "violence.npy", tmp_path / "violence.safetensors"
    np.save(source, np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32))
    wide = replace(clip, same_as="ViT-B-32:openai")
    monkeypatch.setattr(
        type(clip), "embed_images", lambda self, images: torch.ones(len(images), 512) / 512**0.5
    )
    with pytest.raises(ValueError, match=r"--out NEW\.safetensors"):
        add_probes(source, wide)
    assert add_probes(source, wide, out)
    assert load_head(out).probes.shape == (8, 512)
    x = torch.nn.functional.normalize(torch.randn(5, 512), dim=1)
    torch.testing.assert_close(load_head(out)(x), load_head(source)(x))
    for column, direction in enumerate(np.load(source)):
        torch.testing.assert_close(load_head(source, column)(x), x @ torch.from_numpy(direction))
        with pytest.raises(ValueError, match=rf"no column {column}; give violence\.npy itself"):
            load_head(out, column)


def test_the_command_replaces_only_the_head_itself(tmp_path, monkeypatch, capsys, without_probes):
    main = runpy.run_path(str(ROOT / "converters" / "add_probes.py"))["main"]
    there = tmp_path / "mine.safetensors"
    there.write_text("mine")
    for out, code in ((there, 2), (without_probes, 0)):
        words = ["add_probes", without_probes, "--out", out, "--clip_model", WORLD.clip]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        assert main() == code
    assert f"error: --out {there} already exists" in capsys.readouterr().err
    assert there.read_text() == "mine" and load_head(without_probes).probes is not None


def test_probes_of_other_drawings_are_refused(tmp_path, without_probes):
    from safetensors.torch import save_file

    with safe_open(WORLD.detector, framework="pt") as file:
        metadata = file.metadata()
    path = tmp_path / "later.safetensors"
    save_file(load_file(WORLD.detector), path, metadata=metadata | {"probes": "dalle_ppo.probes.v2"})
    with pytest.raises(ValueError, match=r"probes are dalle_ppo\.probes\.v2, but this version needs"):
        load_detector(path)


@pytest.mark.parametrize(
    "probes",
    [
        torch.ones(8, 127),
        torch.ones(7, 128),
        torch.ones(8),
        torch.tensor(1.0),
        torch.ones(8, 128, dtype=torch.int64),
        torch.ones(8, 128, dtype=torch.bool),
        torch.full((8, 128), torch.nan),
    ],
)
def test_damaged_probes_are_one_line(tmp_path, probes):
    from safetensors.torch import save_file

    with safe_open(WORLD.detector, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(WORLD.detector) | {"probes": probes}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(
        ValueError, match=r"a\.safetensors: its probes are damaged .*add_probes\.py"
    ) as caught:
        load_detector(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


# --- the norm


def test_embeddings_that_are_not_normalised_are_warned_of_once(clip):
    detector = load_detector(WORLD.detector)
    embeddings = torch.nn.functional.normalize(torch.randn(40, 128), dim=1)
    with pytest.warns(UserWarning, match=r"embeddings of norm 10,") as caught:
        for batch in (10 * embeddings, 10 * embeddings, embeddings):
            detector(batch)
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="norm 10"):
        load_detector(WORLD.detector)(10 * embeddings)


@pytest.mark.filterwarnings("error")
def test_normalised_embeddings_are_not_warned_of(clip):
    detector = load_detector(WORLD.detector)
    embeddings = torch.nn.functional.normalize(torch.randn(40, 128), dim=1)
    for rows in (embeddings, embeddings.half(), embeddings.bfloat16(), embeddings[:0]):
        detector(rows)
