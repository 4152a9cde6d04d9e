"""Exported policies, loaded by the `min_dalle` package itself."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from min_dalle_reference import package
from published_models import (
    MINI,
    SMALL,
    SMALL_VQGAN,
    VQGAN,
    random_published,
    reduce_presets,
    without_scales,
    write_published,
)
from tiny_models import randomise
from tiny_runs import tiny_arguments

from dalle_ppo import evaluate, export, generate, train
from dalle_ppo.build import saving
from dalle_ppo.build.models import PUBLISHED_SETTINGS, load_model
from dalle_ppo.config.command_line import to_yaml
from dalle_ppo.config.model import ModelConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder, init_bart
from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS
from dalle_ppo.models.dalle.sampling import sample
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.noise import noise_keys
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint

CPU = torch.device("cpu")
TRUE_VQGAN = VQGAN_PRESETS["imagenet_f16_16384"]
POLICY = PolicySettings(guidance=4.0, temperature=0.75)
CAPTIONS = ["a red boat on a blue sea", "Avocado ❤ ARMCHAIR!"]


def write_run(folder, weights, decoder: dict, settings: PolicySettings = POLICY):
    """A run as training leaves it, as far as loading its policy goes."""
    save_checkpoint(folder, 3, {"policy": decoder}, {"policy_settings": dataclasses.asdict(settings)}, keep=1)
    config = Config(model=ModelConfig(path=str(weights)), policy=settings)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A fine-tuned reduced mini: its folder and its decoder's weights."""
    reduce_presets(monkeypatch)
    weights = write_published(tmp_path / "weights", random_published(MINI), "disk")
    tuned = randomise(BartDecoder(MINI), seed=77).state_dict()
    return SimpleNamespace(path=write_run(tmp_path / "run", weights, tuned), decoder=tuned)


@pytest.fixture
def min_dalle(monkeypatch):
    """`min_dalle.MinDalle` without a network: `load(folder, sizes)`."""
    package()  # imported once, without its switches
    from min_dalle import min_dalle as module

    def get(url):
        assert url.endswith("config.json"), f"the package misses a file of the export: {url}"

    monkeypatch.setattr(module, "requests", SimpleNamespace(get=get))

    def load(folder, config=None):
        """The package with networks of `config`'s size instead of the one it has built in."""
        if config is not None:
            own = {"embed_count": config.width, "attention_head_count": config.num_heads}
            own |= {"glu_embed_count": config.glu_width, "layer_count": config.num_layers}
            for name, more in (
                ("DalleBartEncoder", {"text_vocab_count": config.text_vocab_count}),
                ("DalleBartDecoder", {"image_vocab_count": config.image_vocab_count}),
            ):
                network = getattr(module, name)
                monkeypatch.setattr(
                    module, name, lambda network=network, more=more, **given: network(**given | own | more)
                )
        model = module.MinDalle(str(folder), is_mega=False, is_verbose=False, device="cpu")
        if config is not None:
            model.layer_count, model.embed_count = config.num_layers, config.width
        return model

    return load


def greedy_tokens(model, caption: str) -> torch.Tensor:
    """The package's image tokens, int64 [256], always the likeliest."""
    caught = []
    model.image_grid_from_tokens = lambda image_tokens, **options: caught.append(image_tokens)
    list(model.generate_raw_image_stream(caption, 1, 1, top_k=1, supercondition_factor=2))
    return caught[0][0]


def our_greedy_tokens(model, caption: str) -> torch.Tensor:
    settings = PolicySettings(guidance=2.0, top_k=1, start_token=16383)
    prompts, _ = model.family(settings).read([caption])
    return sample(model.decoder, prompts, noise_keys(0, "generate", 0, ["a"], [0]), settings).tokens[0]


@pytest.mark.filterwarnings("ignore")
def test_the_package_loads_the_policy_and_draws_its_tokens(tmp_path, monkeypatch, min_dalle, cli):
    reduce_presets(monkeypatch, vqgan=TRUE_VQGAN)  # the package builds no other
    published = random_published(MINI, vqgan=VQGAN)
    vqgan = {name: value.half() for name, value in VqganDecoder(TRUE_VQGAN).state_dict().items()}
    published = dataclasses.replace(published, detoker=vqgan)
    weights = write_published(tmp_path / "weights", published, "hub")
    tuned = randomise(BartDecoder(MINI), seed=77).state_dict()
    run = write_run(tmp_path / "run", weights, tuned)
    outcome = cli(export.main, run, "--out", tmp_path / "out", "--to", "min-dalle")
    assert outcome.code == 0, outcome.err
    theirs = min_dalle(tmp_path / "out", MINI)
    for name, value in theirs.decoder.state_dict().items():
        assert torch.equal(value, tuned[name]), name
    for name, value in theirs.detokenizer.state_dict().items():
        assert torch.equal(value, vqgan[name].float()), name
    ours = load_model(str(tmp_path / "out"), CPU)
    for caption in CAPTIONS:
        tokens = greedy_tokens(theirs, caption)
        assert len(set(tokens.tolist())) > 20
        assert torch.equal(tokens, our_greedy_tokens(ours, caption))


def test_training_evaluation_and_export_of_published_weights(tmp_path, monkeypatch, cli):
    """The whole way, with the built-in world's CLIP and detector by their paths; there is no judge."""
    reduce_presets(monkeypatch, SMALL, SMALL_VQGAN)
    weights = write_published(tmp_path / "weights", random_published(SMALL, vqgan=SMALL_VQGAN))
    arguments = tiny_arguments(
        tmp_path / "run",
        model__path=weights,
        clip__model=World().clip,
        reward__terms=f"[{{name: nsfw, detector: {World().detector}}}]",
        policy__guidance=4.0,
        num_iterations=1,
        evaluation__num_captions=6,
        evaluation__batch_size=6,
    )
    outcome = cli(train.main, *arguments)
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["policy"]["overall"]["num_images"] == 12
    assert result["policy"]["overall"]["judge_unsafe_rate"] is None
    assert cli(evaluate.main, tmp_path / "run", "--num_captions", "4").code == 0
    outcome = cli(export.main, tmp_path / "run", "--out", tmp_path / "out", "--to", "min-dalle")
    assert outcome.code == 0 and "supercondition_factor=4" in outcome.out
    trained = load_checkpoint(latest_checkpoint(tmp_path / "run")).tensors["policy"]
    exported = load_model(str(tmp_path / "out"), CPU)
    assert exported.settings.guidance == 4.0
    for name, value in exported.decoder.state_dict().items():
        assert torch.equal(value, trained[name])
    assert not torch.equal(trained["lm_head.weight"], load_model(str(weights), CPU).decoder.lm_head.weight)
    picture = ("a boat", "--out", tmp_path / "a.png", "--num_images", "2", "--compare")
    outcome = cli(generate.main, *picture, "--model", tmp_path / "run")
    assert outcome.code == 0 and outcome.out.count("of 2 images flagged unsafe") == 2


@pytest.mark.parametrize("to, suffix", [("min-dalle", "pt"), ("safetensors", "safetensors")])
def test_an_export_is_a_model_of_this_program_with_its_settings(to, suffix, run, tmp_path, cli):
    outcome = cli(export.main, run.path, "--out", tmp_path / "out", "--to", to)
    assert outcome.code == 0, outcome.err
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")) == [
        f"dalle_bart_mini/decoder.{suffix}",
        f"dalle_bart_mini/encoder.{suffix}",
        "dalle_bart_mini/merges.txt",
        "dalle_bart_mini/vocab.json",
        "policy_settings.json",
        f"vqgan/detoker.{suffix}",
    ]
    again, original = load_model(str(tmp_path / "out"), CPU), load_model(str(run.path), CPU)
    assert again.settings == POLICY == original.settings
    for ours, theirs in (
        (again.decoder, original.decoder),
        (again.parts.encoder, original.parts.encoder),
        (again.parts.vqgan, original.parts.vqgan),
    ):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name
    assert torch.equal(again.decoder.lm_head.weight, run.decoder["lm_head.weight"])
    assert not torch.equal(original.reference.lm_head.weight, run.decoder["lm_head.weight"])


def test_half_precision_is_half_the_size(run, tmp_path, cli):
    for dtype in ("float32", "float16"):
        arguments = (run.path, "--out", tmp_path / dtype, "--to", "min-dalle", "--dtype", dtype)
        assert cli(export.main, *arguments).code == 0
    sizes = [(tmp_path / d / "dalle_bart_mini" / "decoder.pt").stat().st_size for d in ("float32", "float16")]
    assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "settings, present, absent",
    [
        (POLICY, ["temperature=0.75, top_k=16384, supercondition_factor=4;", "from 16384"], []),
        (PUBLISHED_SETTINGS, ["from 16384"], ["call generate_image"]),
        (
            PolicySettings(guidance=16.0, top_k=64, start_token=16383),
            ["generate_image with top_k=64;"],
            ["temperature", "supercondition", "starts"],
        ),
    ],
)
def test_one_line_says_where_the_package_samples_differently(settings, present, absent):
    line = export.difference(settings, "mini")
    assert "\n" not in line and "end token off captions of more than 64 tokens" in line
    assert all(words in line for words in present) and not any(words in line for words in absent)


def test_mega_starts_from_another_token():
    assert "the policy starts from 16415" in export.difference(PUBLISHED_SETTINGS, "mega")


def test_the_line_is_printed(run, tmp_path, cli):
    out = cli(export.main, run.path, "--out", tmp_path / "out", "--to", "min-dalle").out
    assert out.count("samples differently") == 1 and "supercondition_factor=4" in out


def test_what_cannot_be_exported_costs_one_line(run, tmp_path, cli, monkeypatch):
    builtin = cli(export.main, "builtin", "--out", tmp_path / "out", "--to", "min-dalle")
    assert builtin.code == 2 and "a model of the built-in world" in builtin.error
    assert "--to" in cli(export.main, run.path, "--out", tmp_path / "out").error
    assert "absent" in cli(export.main, "absent", "--out", tmp_path / "out", "--to", "min-dalle").error
    occupied = cli(export.main, run.path, "--out", run.path, "--to", "min-dalle")
    assert occupied.code == 2 and "already exists" in occupied.error
    monkeypatch.setattr(export, "difference", None)
    monkeypatch.setattr(saving, "write_model", lambda folder, *rest: (folder / "half").touch() or [][0])
    with pytest.raises(IndexError):
        export.main([str(run.path), "--out", str(tmp_path / "out"), "--to", "min-dalle"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights"], "nothing half is left"


def test_damaged_settings_are_named(run, tmp_path, cli):
    assert cli(export.main, run.path, "--out", tmp_path / "out", "--to", "safetensors").code == 0
    (tmp_path / "out" / "policy_settings.json").write_text('{"guidence": 3}')
    outcome = cli(generate.main, "a boat", "--out", tmp_path / "a.png", "--model", tmp_path / "out")
    assert outcome.code == 2 and "policy_settings.json: not valid policy settings" in outcome.error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_the_package_draws_one_caption_at_the_true_size_of_mini(tmp_path, min_dalle, cli, monkeypatch):
    config = dataclasses.replace(BART_PRESETS["mini"], text_vocab_count=50264)
    torch.manual_seed(0)
    networks = BartEncoder(config), BartDecoder(config), VqganDecoder(TRUE_VQGAN)
    for network in networks[:2]:
        init_bart(network, std=0.03)
    states = [{name: value.half() for name, value in n.state_dict().items()} for n in networks]
    del networks, network
    weights = write_published(tmp_path / "weights", SimpleNamespace(
        encoder=without_scales(states[0]), decoder=without_scales(states[1]), detoker=states[2]))  # fmt: skip
    del states
    arguments = (weights, "--out", tmp_path / "out", "--to", "min-dalle", "--dtype", "float16")
    assert cli(export.main, *arguments).code == 0
    ours = load_model(str(tmp_path / "out"), CPU)
    tokens = our_greedy_tokens(ours, CAPTIONS[0])
    pixels = ours.parts.vqgan.decode_uint8(tokens[None])[0].permute(1, 2, 0)
    del ours
    theirs = min_dalle(tmp_path / "out")
    image = theirs.generate_raw_image_stream(CAPTIONS[0], 1, 1, top_k=1, supercondition_factor=2)
    image = next(iter(image))
    assert image.shape == (256, 256, 3)
    assert (image - pixels).abs().max() <= 0.51, "ours is rounded, the package's is not"
