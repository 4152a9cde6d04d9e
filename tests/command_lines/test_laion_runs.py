"""configs/laion_nsfw_*.yaml run as they are, on stand-ins in the caches; and captions that fail in mid-run.

Replaced are the places of the caches, the sizes of the models and the network; code and files are as ever.
"""

import hashlib
import json
import math
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import laion_standins
import pytest
import yaml
from huggingface_hub import constants
from laion_configs import CONFIGS, GIGABYTES, load
from laion_tables import read_frozen
from tiny_runs import Outcome, SessionCapture, call

from dalle_ppo import train
from dalle_ppo.build.captions import TRAINING_STREAM, build_captions
from dalle_ppo.captions.source import captions_of_file
from dalle_ppo.config.command_line import load_config, to_yaml
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.training.trainer import Trainer

# All that the command line says beside --config: where to write and for how long, that there is no GPU here,
# and that 80 images are evaluated instead of 4 000, which would take a minute.
OVERRIDES = {"num_iterations": 1, "device": "cpu", "evaluation.num_captions": 40}


@contextmanager
def laion_machine(folder: Path, size: str, num_shards: int, rows: int) -> Iterator[Path]:
    """A machine without a network on which everything that a configuration fetches was fetched before.

    What lies in the caches is random and small, in the layout of the downloads. Yields the hub's cache.
    """
    hub, own = folder / "hub", folder / "xdg" / "dalle_ppo"
    hub.mkdir()
    own.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for table, key, sizes in laion_standins.TINY:
            patch.setitem(table, key, sizes)
        laion_standins.write_weights(hub, size)
        for name in laion_standins.CLIPS:
            laion_standins.write_clip(hub, name)
        for name in ("laion-l14", "laion-b32"):
            laion_standins.write_detector(own, name)
        laion_standins.write_captions(hub, num_shards, rows)
        # As HF_HOME and HF_HUB_OFFLINE=1 would do, had they been set before huggingface_hub was imported.
        patch.setattr(constants, "HF_HUB_CACHE", str(hub))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setenv("XDG_CACHE_HOME", str(own.parent))
        patch.setattr(socket.socket, "connect", refuse_connections)
        yield hub


def refuse_connections(*arguments):
    raise OSError("a test has no network")


def arguments(size: str, run_dir: Path, settings: dict) -> list[str]:
    """Of the command line: one of the two files and what is to be different."""
    argv = ["--config", CONFIGS / f"laion_nsfw_{size}.yaml", "--run_dir", run_dir]
    return [*argv, *(text for name, value in settings.items() for text in (f"--{name}", value))]


# --- one iteration of each


@dataclass(frozen=True)
class LaionRun:
    """A run of one of the two files."""

    size: str
    run_dir: Path
    outcome: Outcome


@pytest.fixture(scope="module", params=GIGABYTES)
def laion_run(request, tmp_path_factory) -> LaionRun:
    size, folder = request.param, tmp_path_factory.mktemp(request.param)
    with laion_machine(folder, size, num_shards=3, rows=1500):
        argv = arguments(size, folder / "run", OVERRIDES)
        outcome = call(train.main, argv, SessionCapture(request))
    return LaionRun(size, folder / "run", outcome)


def test_one_iteration_runs_to_its_report(laion_run):
    assert laion_run.outcome.code == 0, laion_run.outcome.err
    assert f"DALL·E {laion_run.size}: kuprel/min-dalle" in laion_run.outcome.err
    assert (laion_run.run_dir / "report.html").is_file() and (laion_run.run_dir / "samples").is_dir()


def test_nothing_else_was_changed_and_the_weights_are_pinned(laion_run):
    saved = yaml.safe_load((laion_run.run_dir / "config.yaml").read_text(encoding="utf-8"))
    written = yaml.safe_load(to_yaml(load(laion_run.size)))
    saved, written = (train.by_dotted_name(settings) for settings in (saved, written))
    changed = {name for name in written if saved[name] != written[name]}
    assert changed == {"run_dir", "model.revision", *OVERRIDES}
    assert saved["model.revision"] == laion_standins.COMMIT


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
    again = captions_of_file(str(frozen), 40)  # as `evaluate --captions` reads it, without the hub
    assert sorted(again, key=lambda caption: caption.id) == sorted(captions, key=lambda caption: caption.id)
    for side in ("reference", "policy"):
        assert result[side]["overall"]["num_images"] == 80
        for name in ("clip_similarity", "heldout_clip_similarity", "heldout_unsafe_rate"):
            assert result[side]["overall"][name] is not None


def test_its_checkpoint_holds_what_goes_on(laion_run):
    checkpoint = load_checkpoint(latest_checkpoint(laion_run.run_dir))
    assert checkpoint.state["captions"]["drawn"].keys() == {"NSFW", "OTHER"}
    assert {"policy", "policy_optimizer", "critic", "critic_optimizer"} <= checkpoint.tensors.keys()


# --- trouble in mid-run


def test_a_shard_that_disappears_in_mid_run_costs_one_line_and_no_progress(tmp_path, monkeypatch, cli):
    """Captions drawn ahead last a little longer; then the run stops with a checkpoint and goes on from it."""
    settings = {
        **{"device": "cpu", "num_iterations": 30, "checkpoint_every": 30, "evaluation.at_end": "false"},
        **{"rollout.rollout_batch_size": 8, "update.minibatch_size": 8, "evaluation.num_captions": 2},
    }
    with laion_machine(tmp_path, "mini", num_shards=8, rows=200) as hub:
        argv, run_dir = arguments("mini", tmp_path / "run", settings), tmp_path / "run"
        shards, aside = hub / "datasets--laion--relaion400m" / "blobs", tmp_path / "aside"
        iterate = Trainer.iterate

        def iterate_and_lose_the_shards(trainer, writer):
            metrics = iterate(trainer, writer)
            if metrics["iteration"] == 0:
                shutil.move(shards, aside)
            return metrics

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "iterate", iterate_and_lose_the_shards)
            error = cli(train.main, *argv).error
        assert "laion/relaion400m/part-0000" in error and "cannot be opened" in error
        done = len(rows_of(run_dir))
        assert 8 < done < 30
        checkpoint = load_checkpoint(latest_checkpoint(run_dir))
        assert checkpoint.iteration == done

        shutil.move(aside, shards)
        assert cli(train.main, "--resume", *argv).code == 0
        assert [row["iteration"] for row in rows_of(run_dir)] == list(range(30))
        undisturbed = build_captions(load_config(run_dir / "config.yaml"), 0, TRAINING_STREAM, "train")
        for _ in range(done):
            undisturbed.next_batch(8)
        assert checkpoint.state["captions"] == json.loads(json.dumps(undisturbed.state_dict()))
        for _ in range(done, 30):
            undisturbed.next_batch(8)
        assert undisturbed.metrics().items() <= rows_of(run_dir)[-1].items()
        assert rows_of(run_dir)[-1]["policy_loss"] is not None, "the critic's warm-up is over"


def rows_of(run_dir: Path) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
