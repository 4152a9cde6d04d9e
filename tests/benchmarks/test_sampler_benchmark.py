"""The samplers' benchmarks count operations and time right; what they measure is not here."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from min_dalle_reference import package_decoder, package_encoder
from published_models import MINI
from tiny_models import tiny_bart

FOLDER = Path(__file__).parents[2] / "benchmarks"
CONFIG = replace(MINI, num_image_tokens=8)


@pytest.fixture(scope="module")
def sampler():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("sampler")


@pytest.fixture(scope="module")
def models(sampler):
    """Small networks, and VQGANs that decode nothing."""
    encoder, decoder = tiny_bart(CONFIG)
    package = package_encoder(encoder, CONFIG), package_decoder(decoder, CONFIG)
    return sampler.Models(
        CONFIG, encoder, decoder, SimpleNamespace(decode_uint8=lambda *_: None), *package, lambda *_: None
    )


def test_what_images_share_is_counted_once(sampler, models):
    once, each = sampler.flops_to_draw(models)
    for count in (2, 4):
        assert once + count * each == sampler.flops_of(lambda count=count: sampler.draw_tokens(models, count))
    keys_and_values = CONFIG.num_layers * 2 * 2 * CONFIG.width**2 * (sampler.CAPTION_LENGTH + 2)
    assert once > keys_and_values


def test_each_part_of_a_step_has_its_own_time(sampler, models, monkeypatch):
    """The clock stands still but for calls of the parts, each of which takes a power of ten."""
    parts, clock = sys.modules["step_parts"], [0]

    def ticking(function, ticks):
        def call(*args, **kwargs):
            clock[0] += ticks
            return function(*args, **kwargs)

        return call

    for number, (owner, name, _) in enumerate(parts.PARTS):
        monkeypatch.setattr(owner, name, ticking(getattr(owner, name), 10**number))
    monkeypatch.setattr(parts, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    seconds = parts.step_seconds(lambda: sampler.draw_tokens(models, 3), CONFIG.num_image_tokens)
    layers = CONFIG.num_layers
    calls = {
        "projections and GLU products": layers * (4 + 3 + 2),
        "self attention and cache, without projections": layers,
        "cross attention, without projections": layers,
        "norms": 2 + layers * (2 + 2 + 2),
        "GELU and gate": layers,
        "head": 1,
        "guidance, top-k, softmax": 1,
        "noise": 1,
        "the rest: embeddings, argmax, Python": 1,
    }
    assert seconds == {part: num * 10**i for i, (part, num) in enumerate(calls.items())}


def test_it_prints_all_of_its_tables(sampler, models, monkeypatch, capsys):
    threads = str(torch.get_num_threads())
    argv = ["sampler.py", "--images", "4", "1", "--package_steps", "2", "--threads", threads]
    monkeypatch.setattr(sys, "argv", [*argv, "--width", "64", "--layers", "2"])
    monkeypatch.setattr(sampler, "build_models", lambda config: models)
    monkeypatch.setattr(
        sampler, "parse_arguments", lambda parse=sampler.parse_arguments: (parse()[0], CONFIG)
    )
    sampler.main()
    compared, shares, parts = capsys.readouterr().out.split("\n\n")[1:]
    assert [row.count("|") for row in compared.splitlines()] == [8] * 6
    assert [row.split("|")[1].strip() for row in shares.splitlines()[2:]] == [
        "sampler, 4 images",
        "sampler, 1 images",
        "log-probs, 4 images",
    ]
    rows = [row.strip("| ").split(" | ") for row in parts.splitlines()]
    assert rows[0] == ["ms per step", "4 images", "1 images"] and rows[-1][0] == "all"
    for column in (1, 2):
        cells = [row[column].split(" ") for row in rows[2:-1]]
        assert sum(float(ms) for ms, _ in cells) == pytest.approx(float(rows[-1][column]), abs=0.05)
        assert sum(int(share.strip("(%)")) for _, share in cells) == pytest.approx(100, abs=5)


def test_a_grid_on_a_gpu_is_timed_with_our_encoder(models, sampler, monkeypatch):
    """The package encodes the caption within its time; here on a CPU, where both scripts draw the same."""
    on_gpu, encoded = importlib.import_module("sampler_gpu"), []
    monkeypatch.setattr(on_gpu, "text_tokens_on_gpu", on_gpu.text_tokens)
    encode = on_gpu.encode_prompts
    monkeypatch.setattr(on_gpu, "encode_prompts", lambda *given: encoded.append(1) or encode(*given))
    drawn = on_gpu.encode_and_draw(models.encoder, models.decoder, 3)
    assert drawn.equal(sampler.draw_tokens(models, 3)) and len(encoded) == 1


def test_log_probs_on_a_gpu_are_those_of_training_and_their_products_are_counted(models, monkeypatch):
    on_gpu, tokens, width = importlib.import_module("sampler_gpu"), 2 * CONFIG.num_image_tokens, CONFIG.width
    caption, unconditional = on_gpu.text_tokens(CONFIG)
    prompts = on_gpu.encode_prompts(models.encoder, caption[None], unconditional, on_gpu.SETTINGS)
    scored = []
    monkeypatch.setattr(on_gpu, "log_pi_of_tokens", lambda *given: scored.append(given[-1]))
    monkeypatch.setattr(on_gpu, "seconds_of", lambda call: call() or 1.0)
    row = on_gpu.log_prob_share(models.decoder, prompts, 2, 1.0)
    assert [settings.top_k for settings in scored] == [None]
    step = CONFIG.num_layers * (4 * width**2 + 2 * width**2 + 3 * width * CONFIG.glu_width)
    flops = 2 * tokens * (2 * step + width * CONFIG.num_codes)
    assert row.split("|")[-2].strip() == f"{flops:.0%}"
