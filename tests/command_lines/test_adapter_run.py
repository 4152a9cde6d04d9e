"""A run with adapters through every command: train, resume, evaluate, generate, export."""

import json

import pytest
import torch
from published_models import SMALL, SMALL_VQGAN, random_published, reduce_presets, write_published
from tiny_runs import tiny_arguments

from dalle_ppo import evaluate, export, generate, train
from dalle_ppo.build.models import load_model
from dalle_ppo.iconworld.world import World
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint

peft = pytest.importorskip("peft")
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


@pytest.mark.slow
@torch.no_grad()
def test_every_command_with_adapters(tmp_path, monkeypatch, cli):
    reduce_presets(monkeypatch, SMALL, SMALL_VQGAN)
    weights = write_published(tmp_path / "weights", random_published(SMALL, vqgan=SMALL_VQGAN))
    run = tmp_path / "run"
    settings = {
        "model__path": weights,
        "clip__model": World().clip,
        "reward__terms": f"[{{name: nsfw, detector: {World().detector}}}]",
        "actor__adapter": "lora",
        "critic__adapter": "lora",
        "actor__learning_rate": 0.05,
        "actor__warmup_iterations": 0,
        "checkpoint_every": 1,
        "num_iterations": 2,
        "evaluation__num_captions": 4,
        "evaluation__batch_size": 8,
    }
    with torch.enable_grad():
        outcome = cli(train.main, *tiny_arguments(run, **settings))
    assert outcome.code == 0, outcome.err
    first = json.loads((run / "evaluation.json").read_text())
    assert first["policy"]["overall"]["kl"] > 0 and (run / "report.html").is_file()

    assert cli(evaluate.main, run, "--checkpoints", "all").code == 0
    again = json.loads((run / "evaluation.json").read_text())
    assert again["policy"] == first["policy"], "the merged weights are those that were drawn with"
    assert again["step_000001"] != again["policy"]

    assert cli(export.main, run, "--out", tmp_path / "out", "--to", "min-dalle").code == 0
    exported = load_model(str(tmp_path / "out"), CPU).decoder.state_dict()
    theirs = peft.PeftModel.from_pretrained(load_model(str(weights), CPU).decoder, latest_checkpoint(run))
    merged = theirs.merge_and_unload().state_dict()
    assert all(torch.equal(exported[name], merged[name]) for name in exported)
    checkpoint = load_checkpoint(latest_checkpoint(run), "adapter_model")
    assert sum(t.numel() for t in checkpoint.tensors["adapter_model"].values()) < 20_000

    picture = ("a boat", "--out", tmp_path / "a.png", "--num_images", "1", "--compare", "--show_unsafe")
    for dtype in ("float32", "bfloat16"):
        assert cli(generate.main, *picture, "--model", run, "--dtype", dtype).code == 0

    with torch.enable_grad():
        for section in ("actor", "critic"):
            refused = cli(train.main, "--run_dir", run, "--resume", f"--{section}.adapter", "none")
            assert refused.code == 2
            assert f"{section}.adapter is none, but the checkpoint was written with lora" in refused.error
