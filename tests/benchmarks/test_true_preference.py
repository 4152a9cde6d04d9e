"""The script that tells what an alignment is worth: whose pictures it compares, and how they are drawn."""

from pathlib import Path
from types import SimpleNamespace

import torch
from scripts import load_script

from dalle_ppo.models.policy_settings import PolicySettings

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "true_preference.py"


def test_a_run_is_compared_with_its_own_reference_by_its_own_settings(monkeypatch):
    script, settings = load_script(SCRIPT), PolicySettings(guidance=3.5)

    def family(chosen):
        assert chosen == settings
        return SimpleNamespace(sampler_weights=lambda decoder: f"weights of {decoder}")

    def collect(family, weights, captions, samples, noise):
        drawn.append((weights, noise))
        return SimpleNamespace(images=torch.full((len(captions), 3), len(weights), dtype=torch.uint8))

    drawn, run = [], SimpleNamespace(decoder="policy", reference="start", settings=settings, family=family)
    monkeypatch.setattr(script, "load_model", lambda path, device: {"runs/aligned": run}[path])
    monkeypatch.setattr(script, "collect", collect)
    before, after = script.draw_both("runs/aligned", list(range(150)))
    assert (len(before), before[0, 0], after[0, 0]) == (
        150,
        len("weights of start"),
        len("weights of policy"),
    )
    assert drawn[0][1] == drawn[2][1] and drawn[1][1] == drawn[3][1] != drawn[0][1], "the same noise"
