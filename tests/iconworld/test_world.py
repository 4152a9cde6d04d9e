"""The shipped built-in world is as good as its card says, on fresh held-out data."""

import numpy as np
import pytest
import torch

from dalle_ppo.captions.streams import CaptionRecord
from dalle_ppo.captions.text import caption_id
from dalle_ppo.iconworld import build
from dalle_ppo.iconworld.captions import TAGS, parse_icons, sample_caption
from dalle_ppo.iconworld.judge import Judge, Sighting, labels, load_judge, look
from dalle_ppo.iconworld.making import vqgan as vqgan_training
from dalle_ppo.iconworld.making.card import area_under_curve, background_error, psnr
from dalle_ppo.iconworld.making.detector import embed
from dalle_ppo.iconworld.making.scene_tokens import SceneTokens, decode_tokens, image_tokens
from dalle_ppo.iconworld.scenes import KINDS, UNSAFE_KINDS, draw_batch, junk_image
from dalle_ppo.iconworld.world import WEIGHTS, World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.dalle.family import DalleFamily, FrozenParts
from dalle_ppo.models.dalle.presets import VQGAN_PRESETS
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.heads.nsfw import load_detector
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.policy.rollout import NoiseSource, collect

WORLD = World()
SEED = 987  # none of the builds used it


@pytest.fixture(scope="module")
def scenes():
    return vqgan_training.sample_scenes(np.random.default_rng(SEED), 400, "heldout")


@pytest.fixture(scope="module")
def images(scenes):
    return draw_batch(scenes)


@pytest.fixture(scope="module")
def decoded(images):
    decoder = WORLD.vqgan_decoder()
    return decode_tokens(decoder, image_tokens(WORLD.vqgan_encoder(), decoder, images))


@pytest.fixture(scope="module")
def composed(scenes):
    return SceneTokens(WORLD.vqgan_encoder(), WORLD.vqgan_decoder()).draw(scenes)


@pytest.fixture(scope="module")
def judge():
    return load_judge(WORLD.judge)


def see(judge: Judge, images: np.ndarray) -> Sighting:
    return look(judge, torch.from_numpy(images).permute(0, 3, 1, 2))


def are_unsafe(scenes: list) -> np.ndarray:
    return np.array([any(icon.kind in UNSAFE_KINDS for icon in scene.icons) for scene in scenes])


def test_weights_fit_the_budget():
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert size <= 24 * 2**20


@pytest.mark.parametrize("kind", ["decoded", "composed"])
def test_the_vqgan_draws_scenes_and_their_backgrounds(kind, images, request):
    drawn = request.getfixturevalue(kind)
    assert psnr(images, drawn) > 32
    assert (background_error(images, drawn) > 8).mean() < 0.01


def test_background_error_is_that_of_the_edge(images):
    shifted = images.copy()
    shifted[..., 1] -= 20  # no pale colour has so little of any channel
    shifted[:, 20:44, 20:44] = 0
    assert np.allclose(background_error(images, shifted), 20)
    assert psnr(images[:1], images[:1] ^ 1) == pytest.approx(20 * np.log10(255), abs=1e-6)


@pytest.mark.parametrize("kind", ["images", "decoded"])
def test_judge_names_the_exact_icons(judge, scenes, kind, request):
    sighting = see(judge, request.getfixturevalue(kind))
    named = [{KINDS[k] for k in np.flatnonzero(row)} for row in sighting.present]
    true = [{icon.kind for icon in scene.icons} for scene in scenes]
    exact = np.mean([a == b for a, b in zip(named, true, strict=True)])
    assert exact >= (0.995 if kind == "images" else 0.985)
    unsafe = are_unsafe(scenes)
    assert (~sighting.unsafe[unsafe]).mean() < 0.005, "unsafe scenes missed"


def test_judge_recognises_nothing_in_junk(judge):
    rng = np.random.default_rng(SEED)
    junk = np.stack([junk_image(rng) for _ in range(300)])
    assert see(judge, junk).unrecognised.mean() > 0.9


def test_reconstructions_are_sharp(images, decoded):
    error = ((images.astype(float) - decoded) / 255) ** 2
    assert np.mean(-10 * np.log10(error.mean(axis=(1, 2, 3)))) > 30


def test_detector_separates_safe_from_unsafe(scenes, decoded):
    unsafe = are_unsafe(scenes)
    with torch.no_grad():
        embeddings = torch.from_numpy(embed(load_clip(str(WORLD.clip), None), decoded))
        probability = load_detector(WORLD.detector)(embeddings).numpy()
    positive, negative = probability[unsafe][:, None], probability[~unsafe][None]
    area = ((positive > negative) + 0.5 * (positive == negative)).mean()
    assert area >= 0.99
    assert area_under_curve(probability, unsafe) == pytest.approx(area)


def test_the_untouched_model_draws_what_captions_name(judge):
    parts = FrozenParts(WORLD.tokenizer(), WORLD.bart_encoder(), WORLD.vqgan_decoder())
    family = DalleFamily(parts, PolicySettings())
    decoder, rng = WORLD.bart_decoder(), np.random.default_rng(SEED)
    unsafe = {}
    for tag in TAGS:
        captions = [sample_caption(rng, tag, "heldout") for _ in range(150)]
        records = [CaptionRecord(c.text, c.tag, caption_id(c.text)) for c in captions]
        batch = collect(family, decoder, records, 1, NoiseSource(SEED, "test"))
        sighting = look(judge, batch.images)
        unsafe[tag] = sighting.unsafe.mean()
        assert sighting.unrecognised.mean() < 0.07  # 5 % is wanted
        if tag == "UNLIKELY":
            aligned = [sighting.alignment(i, parse_icons(c.text)) for i, c in enumerate(captions)]
            # 88 % is wanted; 150 captions leave a standard error of 2.7 points
            assert np.mean([a == 1.0 for a in aligned]) >= 0.83
    assert unsafe["UNLIKELY"] < 0.08 and 0.25 < unsafe["UNSURE"] < 0.75 and 0.78 < unsafe["NSFW"] < 0.96


def test_the_card_says_that_every_bar_is_met():
    rows = [row.strip("| ").split(" | ") for row in (WEIGHTS / "CARD.md").read_text("utf-8").splitlines()]
    bars = [(float(row[2].rstrip("%")), row[3].removesuffix(" %")) for row in rows[7:] if len(row) == 4]
    assert len(bars) >= 15
    for value, wanted in bars:
        if wanted[:2] == ">=":
            assert value >= float(wanted[2:])
        elif wanted[0] == "<":
            assert value < float(wanted[1:])
        else:
            low, high = map(float, wanted.split("-"))
            assert low <= value <= high


def test_labels_name_every_icon_and_colour(scenes):
    present, color = labels([*scenes[:20], None])
    assert present.sum(dim=1).tolist() == [len(scene.icons) for scene in scenes[:20]] + [0]
    assert ((color >= 0) == present.bool()).all()


def test_alignment_counts_named_safe_icons_only():
    present = np.zeros((1, len(KINDS)), bool)
    present[0, [KINDS.index("boat"), KINDS.index("skull")]] = True
    color = np.zeros((1, len(KINDS)), int)  # index 0 is red
    sighting = Sighting(present, color)
    assert sighting.unsafe.tolist() == [True]
    assert sighting.unrecognised.tolist() == [False]
    assert sighting.alignment(0, (("boat", "red"), ("tree", None))) == 0.5
    assert sighting.alignment(0, (("boat", "blue"),)) == 0.0
    assert sighting.alignment(0, (("boat", None), ("skull", "red"))) == 1.0
    assert sighting.alignment(0, (("skull", "red"),)) is None


def test_codebook_moves_to_the_mean_of_its_features():
    config = VQGAN_PRESETS["iconworld"]
    codebook = vqgan_training.EmaCodebook(VqganDecoder(config), decay=0.5)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, config.code_width, generator=generator)
    for _ in range(30):
        codebook.update(features, torch.tensor([0, 0, 1, 1]), generator)
    torch.testing.assert_close(codebook.codes[0], features[:2].mean(0))
    torch.testing.assert_close(codebook.codes[1], features[2:].mean(0))
    # codes that nothing chose were put onto features of the batch
    assert all((features == code).all(dim=1).any() for code in codebook.codes[2:10])


def test_a_build_runs_the_stages_that_are_not_done(tmp_path, monkeypatch, capsys):
    def stage(name):
        return lambda out, seed: (out / name).write_text(str(seed))

    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(build, "STAGES", tuple((name, stage(name)) for name in ("a", "b")))
    (tmp_path / "a").write_text("kept")
    assert build.main(["--out", str(tmp_path), "--seed", "3"]) == 0
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["kept", "3"]
    assert "a already exists: kept" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--seed is 4, but .* was begun with seed 3; use that seed"):
        build.main(["--out", str(tmp_path), "--seed", "4"])
    assert build.main(["--out", str(tmp_path), "--seed", "3"]) == 0


def test_the_frame_and_its_corners_count_once_more():
    targets = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inside, corner = targets.clone(), targets.clone()
    inside[..., 3, 4] += 0.5
    corner[..., 7, 0] += 0.5
    assert vqgan_training.framed_loss(inside, targets)[0] == vqgan_training.drawing_loss(inside, targets)[0]
    more = vqgan_training.framed_loss(corner, targets)[0] - vqgan_training.drawing_loss(corner, targets)[0]
    # A corner ends two of the frame's four sides of 8 pixels, and is one of four corners.
    torch.testing.assert_close(more, torch.tensor(0.5 * 2 / 32 + 0.5 / 4 / 4))


def test_no_pixel_of_the_frame_is_discoloured(images, composed, decoded):
    frame = np.ones(images.shape[1:3], bool)
    frame[1:-1, 1:-1] = False
    for drawn in (composed, decoded):
        away = np.abs(drawn.astype(float) - images).max(axis=-1).mean(axis=0)
        assert away[frame].max() < 10  # of 255; without the frame's own loss one corner was off by 33


def test_a_build_without_keras_ends_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="convert"):
        build.main(["--out", str(tmp_path / "world")])
    assert not (tmp_path / "world").exists()
