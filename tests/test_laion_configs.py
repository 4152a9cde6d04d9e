"""configs/laion_nsfw_*.yaml: they parse, say everything that matters, fit what they say they fit, and run."""

import hashlib
import json
import math
import socket
from dataclasses import dataclass
from pathlib import Path

import laion_standins
import pytest
import yaml
from huggingface_hub import constants
from tiny_runs import Outcome, SessionCapture, call

from dalle_ppo import train
from dalle_ppo.captions import read_frozen
from dalle_ppo.config import Config, parse_command_line, to_yaml
from dalle_ppo.run_state import latest_checkpoint, load_checkpoint

CONFIGS = Path(__file__).parents[1] / "configs"
GIGABYTES = {"mini": 16, "mega": 80}
# Of one float32 network each, in 10^9 bytes: 203 M, 235 M, 219 M and 1 110 M, 1 478 M, 1 444 M weights.
ENCODER, DECODER, CRITIC = (
    {"mini": 0.81, "mega": 4.44},
    {"mini": 0.94, "mega": 5.91},
    {"mini": 0.88, "mega": 5.78},
)
KEYS_VALUES = {"mini": 0.10, "mega": 0.81}
# Saved for the backward pass, an image: of the actor with guidance.
ACTIVATIONS = {"mini": 0.62, "mega": 2.06}
CLIP_AND_VQGAN = 1.9
VQGAN_IMAGE, CACHE_IMAGE = 0.168, {"mini": 0.05, "mega": 0.20}


def load(size: str) -> Config:
    return parse_command_line(["--config", str(CONFIGS / f"laion_nsfw_{size}.yaml")], "test", "")[0]


@pytest.mark.parametrize("size", GIGABYTES)
def test_it_trains_that_model_on_laions_captions_with_laions_detector(size):
    config = load(size)
    assert config.model.path == size and config.device == "cuda"
    assert config.captions.source == "hub:laion/laion400m"
    assert config.captions.shares == {"NSFW": 0.5, "OTHER": 0.5}
    assert (config.clip.model, config.clip.pretrained) == ("ViT-L-14-quickgelu", "openai")
    assert config.reward.detector == "laion-l14"
    held_out = config.evaluation.heldout_clip
    assert (held_out.model, config.evaluation.heldout_detector) == ("ViT-B-32-quickgelu", "laion-b32")
    assert config.policy.guidance > 1.5, "the built-in world's guidance is not theirs"


@pytest.mark.parametrize("size", GIGABYTES)
def test_every_section_is_spelled_out(size):
    written = yaml.safe_load((CONFIGS / f"laion_nsfw_{size}.yaml").read_text(encoding="utf-8"))
    resolved = yaml.safe_load(to_yaml(load(size)))
    for section in ("model", "policy", "captions", "rollout", "clip", "reward"):
        assert list(written[section]) == list(resolved[section]), section


def test_the_two_differ_only_where_the_models_do():
    mini, mega = (
        yaml.safe_load((CONFIGS / f"laion_nsfw_{size}.yaml").read_text(encoding="utf-8"))
        for size in GIGABYTES
    )
    for section in ("policy", "captions", "clip", "reward", "kl"):
        assert mini[section] == mega[section]


@pytest.mark.parametrize("size", GIGABYTES)
def test_the_memory_fits(size):
    """Weights, gradients, Adam and activations, a tenth to spare; drawing, without gradients."""
    config = load(size)
    frozen = ENCODER[size] + 2 * DECODER[size] + CRITIC[size] + CLIP_AND_VQGAN
    adam, gradients = (n * (KEYS_VALUES[size] + CRITIC[size]) for n in (2, 1))
    update = frozen + adam + gradients + config.ppo.microbatch_size * ACTIVATIONS[size]
    assert update < 0.9 * GIGABYTES[size]
    for images in (config.rollout.rollout_batch_size, config.evaluation.batch_size, 32):
        drawing = max(images * CACHE_IMAGE[size], min(64, images) * VQGAN_IMAGE)
        assert frozen + adam + drawing < 0.9 * GIGABYTES[size]


# --- one iteration of each, as it is

# All that the command line says beside --config: where to write and for how long, that there is no GPU here,
# and that 80 images are evaluated instead of 4 000, which would take a minute.
OVERRIDES = {"num_iterations": 1, "device": "cpu", "evaluation.num_captions": 40}


@dataclass(frozen=True)
class LaionRun:
    """A run of one of the two files."""

    size: str
    run_dir: Path
    outcome: Outcome


def refuse_connections(*arguments):
    raise OSError("a test has no network")


@pytest.fixture(scope="module", params=GIGABYTES)
def laion_run(request, tmp_path_factory) -> LaionRun:
    """What the run would download lies in the caches, in the same layout, random and small.

    Replaced are the places of the caches, the sizes of the models and the network; code and file are as ever.
    """
    folder = tmp_path_factory.mktemp(request.param)
    hub, own = folder / "hub", folder / "xdg" / "dalle_ppo"
    hub.mkdir()
    own.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for table, key, sizes in laion_standins.TINY:
            patch.setitem(table, key, sizes)
        laion_standins.write_weights(hub, request.param)
        for name in laion_standins.CLIPS:
            laion_standins.write_clip(hub, name)
        for name in ("laion-l14", "laion-b32"):
            laion_standins.write_detector(own, name)
        laion_standins.write_captions(hub, num_shards=3, rows=1500)
        # As HF_HOME and HF_HUB_OFFLINE=1 would do, had they been set before huggingface_hub was imported.
        patch.setattr(constants, "HF_HUB_CACHE", str(hub))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setenv("XDG_CACHE_HOME", str(own.parent))
        patch.setattr(socket.socket, "connect", refuse_connections)
        argv = ["--config", CONFIGS / f"laion_nsfw_{request.param}.yaml", "--run_dir", folder / "run"]
        argv += [text for name, value in OVERRIDES.items() for text in (f"--{name}", value)]
        outcome = call(train.main, argv, SessionCapture(request))
    return LaionRun(request.param, folder / "run", outcome)


def test_one_iteration_runs_to_its_report(laion_run):
    assert laion_run.outcome.code == 0, laion_run.outcome.err
    assert f"DALL·E {laion_run.size}: kuprel/min-dalle" in laion_run.outcome.err
    assert (laion_run.run_dir / "report.html").is_file() and (laion_run.run_dir / "samples").is_dir()


def test_nothing_else_was_changed(laion_run):
    saved = yaml.safe_load((laion_run.run_dir / "config.yaml").read_text(encoding="utf-8"))
    written = yaml.safe_load(to_yaml(load(laion_run.size)))
    saved, written = (train.by_dotted_name(settings) for settings in (saved, written))
    assert {name for name in written if saved[name] != written[name]} == {"run_dir", *OVERRIDES}


def test_its_metrics_are_those_of_laions_captions(laion_run):
    (line,) = (laion_run.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics, images = json.loads(line), load(laion_run.size).rollout.rollout_batch_size
    assert metrics["images"] == metrics["captions/drawn"] == images
    assert metrics["captions/share_NSFW"] == 0.5
    shares = [value for name, value in metrics.items() if name.startswith("captions/share_")]
    assert len(shares) == 4 and math.isclose(sum(shares), 1)
    assert metrics["captions/read"] > images and metrics["captions/skipped_other_split"] > 0
    assert metrics["kl"] == 0 and 0 < metrics["entropy"] < 16 * math.log(64)
    assert metrics["reward_std"] > 0 and 0 < metrics["nsfw_probability_mean"] < 1
    assert metrics["value_loss"] > 0 and metrics["critic_gradient_norm"] > 0, "the critic warms up alone"


def test_its_evaluation_is_frozen_and_held_out_clip_and_detector_see_it(laion_run):
    result = json.loads((laion_run.run_dir / "evaluation.json").read_text(encoding="utf-8"))
    frozen = laion_run.run_dir / "evaluation" / "captions.parquet"
    assert result["captions_sha256"] == hashlib.sha256(frozen.read_bytes()).hexdigest()
    captions = read_frozen(frozen)
    assert len(captions) == 40 and sum(caption.tag == "NSFW" for caption in captions) == 20
    for side in ("reference", "policy"):
        assert result[side]["overall"]["num_images"] == 80
        for name in ("clip_similarity", "heldout_clip_similarity", "heldout_unsafe_rate"):
            assert result[side]["overall"][name] is not None


def test_its_checkpoint_holds_what_goes_on(laion_run):
    checkpoint = load_checkpoint(latest_checkpoint(laion_run.run_dir))
    assert checkpoint.state["captions"]["drawn"].keys() == {"NSFW", "OTHER"}
    assert {"policy", "policy_optimizer", "critic", "critic_optimizer"} <= checkpoint.tensors.keys()
