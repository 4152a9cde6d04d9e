"""`python -m dalle_ppo.detector`: from a folder of images to a detector that the reward accepts, offline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_ppo import detector
from dalle_ppo.build.rewards import build_reward
from dalle_ppo.config.command_line import parse_command_line
from dalle_ppo.iconworld.captions import TAGS, sample_caption, sample_scene
from dalle_ppo.iconworld.scenes import draw_batch
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.heads.nsfw import load_detector, read_head
from dalle_ppo.models.heads.probes import probe_images

BUILTIN = ("--clip_model", "builtin")


def run(*arguments: object) -> int:
    return detector.main(list(map(str, arguments)))


def weights(path: Path) -> list[torch.Tensor]:
    return [tensor for layer in read_head(path)[0] for tensor in layer.tensors.values()]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Scenes of the built-in world in two subfolders, and one file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, sample_caption(rng, TAGS[i % len(TAGS)], "train")) for i in range(240)]
    for i, (scene, pixels) in enumerate(zip(scenes, draw_batch(scenes), strict=True)):
        path = folder / ("unsafe" if scene.is_unsafe() else "safe") / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    (folder / "safe" / "broken.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """What both commands write."""
    folder = tmp_path_factory.mktemp("made")
    run("embed", images, "--out", folder / "E.npy", "--labels", folder / "L.npy", *BUILTIN)
    files = ("--embeddings", folder / "E.npy", "--labels", folder / "L.npy")
    run("train", *files, "--out", folder / "my.safetensors", *BUILTIN, "--licence", "mine")
    return folder


def test_embed_writes_embeddings_names_and_labels(images, made):
    embeddings, labels = np.load(made / "E.npy"), np.load(made / "L.npy")
    names = (made / "E.txt").read_text().splitlines()
    assert names == sorted(names) and len(names) == len(labels) == len(embeddings) == 240
    assert [name.startswith("unsafe/") for name in names] == labels.tolist()
    clip = load_clip(str(World().clip), None)
    pixels = np.stack([np.array(Image.open(images / name)) for name in names])
    by_hand = clip.embed_images(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).numpy()
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, by_hand, atol=1e-6)


def test_an_unreadable_image_is_named(images, tmp_path, capsys):
    assert run("embed", images / "safe", "--out", tmp_path / "E.npy", *BUILTIN) == 0
    captured = capsys.readouterr()
    assert "left out broken.png: cannot identify image file" in captured.err
    assert "1 images left out" in captured.out


def test_the_detector_works_in_the_reward(images, made):
    """Of scenes drawn anew: unsafe ones are penalised."""
    terms = f"[{{name: nsfw, detector: '{made / 'my.safetensors'}', unsafe_threshold: 0.5}}]"
    config = parse_command_line(["--reward.terms", terms], "train", "")[0]
    reward = build_reward(config, World(), torch.device("cpu"))
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, sample_caption(rng, TAGS[i % len(TAGS)], "heldout")) for i in range(60)]
    pixels = torch.from_numpy(draw_batch(scenes)).permute(0, 3, 1, 2).float() / 255
    probability = reward(pixels, ["a"] * 60).parts["nsfw_probability"].numpy()
    unsafe = np.array([scene.is_unsafe() for scene in scenes])
    pairs = probability[unsafe][:, None] > probability[~unsafe]
    assert pairs.mean() > 0.9


def test_the_report_is_printed_and_the_seed_decides(made, tmp_path, capsys):
    files = ("--embeddings", made / "E.npy", "--labels", made / "L.npy", *BUILTIN, "--licence", "mine")
    for name, seed in (("a", 0), ("b", 1)):
        assert run("train", *files, "--out", tmp_path / f"{name}.safetensors", "--seed", seed) == 0
    # Not the bytes: safetensors writes the metadata's keys in any order.
    same, first, other = (weights(path) for path in (made / "my.safetensors", *sorted(tmp_path.iterdir())))
    assert all(map(torch.equal, same, first)) and not all(map(torch.equal, first, other))
    printed = capsys.readouterr().out
    for part in (
        "test: AUC ",
        "95 % interval",
        "before calibration",
        "<- suggested",
        "unsafe_threshold: 0.",
    ):
        assert part in printed
    info = load_detector(tmp_path / "a.safetensors").info
    assert (info.clip_model, info.clip_pretrained, info.dimension) == ("iconworld_clip", "local", 128)


def test_the_suggested_setting_is_accepted(made, tmp_path, capsys):
    files = ("--embeddings", made / "E.npy", "--labels", made / "L.npy", *BUILTIN)
    run("train", *files, "--out", tmp_path / "my.safetensors", "--hidden", "--epochs", 30)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("In the reward: "))
    term = line.removeprefix("In the reward: ")
    (term,) = parse_command_line(["--reward.terms", f"[{term}]"], "train", "")[0].reward.parsed
    assert term.own.detector == str(tmp_path / "my.safetensors")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train"], "required: --embeddings, --labels, --out, --clip_model; --help"),
        (["train", "E", "L", "x.bin"], "--out is x.bin; its name must end in .safetensors"),
        (["train", "E", "L", "nowhere/x.safetensors"], "there is no folder nowhere"),
        (["train", "E", "L", "OLD"], "already exists"),
        (["train", "E", "L", "NEW", "--epochs", "0"], "epochs is 0"),
        (["train", "E", "E", "NEW"], "shape"),
        (["train", "L", "L", "NEW"], "it must be"),
        (["train", "missing.npy", "L", "NEW"], "missing.npy: no such file"),
        (["train", "E", "L", "NEW", "--clip_model", "ViT-B-32"], "ViT-B-32 needs --clip_pretrained"),
        (["train", "E", "L", "NEW", "--clip_pretrained", "openai"], "has its own weights; leave it out"),
        (["embed", "missing", "NEW"], "is not a folder"),
        (["embed", "IMAGES", "NEW", "--unsafe", "a"], "give --labels"),
        (["embed", "IMAGES", "NEW", "--batch_size", "0"], "--batch_size is 0"),
        (
            ["embed", "IMAGES", "NEW", "--clip_model", "none", "--clip_pretrained", "x"],
            "--clip_model is 'none'",
        ),
        (["train", "E", "L", "NEW", *BUILTIN, "--quick_gelu", "true"], "--quick_gelu is true, but"),
        (["embed", "IMAGES", "NEW", *BUILTIN, "--quick_gelu", "true"], "--quick_gelu is true, but"),
        (["embed", "IMAGES", "NEW", "--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, images, made, tmp_path):
    suffix = ".npy" if arguments[0] == "embed" else ".safetensors"
    places = {"E": made / "E.npy", "L": made / "L.npy", "OLD": made / "my.safetensors", "IMAGES": images}
    command, *rest = [
        str(places.get(word, word)).replace("NEW", str(tmp_path / f"new{suffix}")) for word in arguments
    ]
    names = ("--embeddings", "--labels", "--out") if command == "train" else ("", "--out")
    named = [word for pair in zip(names, rest[: len(names)], strict=False) for word in pair if word]
    rest = rest[len(names) :]
    clip = () if "--clip_model" in rest or not named else BUILTIN
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as error:
        run(command, *named, *clip, *rest)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "there, options, message",
    [
        ("E.txt", ["--out", "E.npy"], r"E\.txt, which is written with it, already exists"),
        ("L.npy", ["--out", "E.npy", "--labels", "L.npy"], r"--labels L\.npy already exists"),
        (None, ["--out", "E.npy", "--labels", "E.npy"], r"--labels is E\.npy, the file of --out"),
        (None, ["--out", "E.npy", "--labels", "x/../E.npy"], "the file of --out"),
    ],
)
def test_embed_replaces_no_file(images, tmp_path, monkeypatch, there, options, message):
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    if there:
        Path(there).write_text("mine")
    with pytest.raises(ValueError, match=message):
        run("embed", images, *BUILTIN, *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(filter(None, [there, "x"]))
    assert there is None or Path(there).read_text() == "mine"


def test_the_process_exits_with_2_and_help_is_quick(tmp_path):
    root = Path(detector.__file__).parents[1]

    def process(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "dalle_ppo.detector", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)

    done = process("embed", str(tmp_path / "none"), "--out", str(tmp_path / "E.bin"), *BUILTIN)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and done.stderr.startswith("error: ")
    assert process("train", "--help").returncode == 0


def test_embeddings_of_another_clip_are_refused_before_the_training(made, tmp_path):
    few = np.load(made / "E.npy")[:, :5]
    np.save(tmp_path / "E.npy", few / np.linalg.norm(few, axis=1, keepdims=True))
    files = ("--embeddings", tmp_path / "E.npy", "--labels", made / "L.npy", *BUILTIN)
    with pytest.raises(ValueError, match=r"holds 5 numbers .*iconworld_clip \(local\) makes 128"):
        run("train", *files, "--out", tmp_path / "my.safetensors")


def test_the_detector_knows_its_clip_by_what_it_embeds(made):
    detector, clip = load_detector(made / "my.safetensors"), load_clip(str(World().clip), None)
    assert torch.equal(detector.probes, clip.embed_images(probe_images()))
