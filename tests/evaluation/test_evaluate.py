"""An evaluation's sides, baselines and checkpoints, on networks of milliseconds; and its command line."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import TINY, tiny_bart
from tiny_runs import TINY_SETTINGS

from dalle_ppo import evaluate as command
from dalle_ppo.build.rewards import measures_sha256
from dalle_ppo.captions.source import CaptionRecord, captions_of_file
from dalle_ppo.config.clip import ClipConfig
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation import drawing
from dalle_ppo.evaluation.baselines import Baseline, best_of, parse_baselines, reject
from dalle_ppo.evaluation.heldout import load_heldout
from dalle_ppo.evaluation.measures import Measures
from dalle_ppo.evaluation.sides import BATCHES, Subject, evaluate
from dalle_ppo.evaluation.suite import Suite
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.dalle.family import DalleFamily, FrozenParts
from dalle_ppo.models.dalle.sampling import log_pi_of_tokens
from dalle_ppo.models.dalle.tokenizer import TextTokens
from dalle_ppo.policy.rollout import NoiseSource, as_float, collect
from dalle_ppo.report.page import write_report
from dalle_ppo.rewards.base import RewardResult
from dalle_ppo.runs.provenance import path_sha256, weights_sha256

CAPTIONS = [CaptionRecord(f"caption {n}", ("UNLIKELY", "NSFW")[n % 2], f"{n:016x}") for n in range(7)]
SAMPLES = 2
ORIGIN = {"iteration": 6, "policy_sha256": "f" * 64}
CONFIG = Config(
    evaluation=EvaluationConfig(num_captions=7, samples_per_caption=SAMPLES, batch_size=6),
)


class Tokenizer:
    """The number in a caption, as its only word."""

    def encode(self, captions):
        tokens = torch.ones(len(captions), TINY.num_text_tokens, dtype=torch.int64)
        for row, text in zip(tokens, captions, strict=True):
            row[:3] = torch.tensor([0, 3 + int(text.split()[-1]) if text else 2, 2])
        return TextTokens(tokens, 0)

    def unconditional(self):
        return self.encode([""]).tokens[0]


class Vqgan(torch.nn.Module):
    """8 x 8 pictures whose rows have the brightness of their codes: red as drawn, green backwards."""

    def __init__(self, step=23):
        super().__init__()
        self.register_buffer("step", torch.tensor(step))

    def decode_uint8(self, tokens, microbatch_size=None):
        rows = (tokens * self.step).byte()[:, None, :, None].expand(-1, 1, -1, 8)
        return torch.cat([rows, rows.flip(2), rows // 2], dim=1)


ENCODER, REFERENCE = tiny_bart()
FAMILY = DalleFamily(FrozenParts(Tokenizer(), ENCODER, Vqgan()), CONFIG.policy)


def with_parts(**changes) -> DalleFamily:
    return dataclasses.replace(FAMILY, parts=dataclasses.replace(FAMILY.parts, **changes))


def policy(seed):
    return tiny_bart(seed=seed)[1]


def reward(pixels, captions, metadata=None):
    """Red is unsafe, and only the first row of a safe picture earns anything."""
    probability, similarity = pixels[:, 0].mean(dim=(1, 2)), pixels[:, 0, 0].mean(dim=1)
    parts = {"nsfw_probability": probability, "clip_similarity": similarity, "size": pixels[:, 0].sum((1, 2))}
    return RewardResult(torch.where(probability > 0.4, -30.0, similarity), parts, embed(pixels))


def embed(pixels):
    return torch.nn.functional.normalize(pixels.flatten(1) + 0.1, dim=1)


def judge(images, captions):
    """Sees a skull where the last row is bright; knows what is meant by even numbers only."""
    bright = as_float(images)[:, 0, -1].mean(dim=1).numpy()
    meant = np.array([np.nan if int(text.split()[-1]) % 2 else 1.0 for text in captions])
    return {"judge_unsafe": (bright > 0.5) * 1.0, "judge_alignment": meant, "judge_unrecognised": bright * 0}


MEASURES = Measures(reward, judge)


SUBJECT = Subject(policy(7), REFERENCE, FAMILY, ORIGIN)


def run(folder, config=CONFIG, captions=CAPTIONS, measures=MEASURES, baselines=(), **subject):
    """An evaluation of `SUBJECT`, some of it replaced."""
    subject = dataclasses.replace(SUBJECT, **subject)
    return evaluate(config, folder, subject, measures, captions, baselines=baselines)


def rows_of(folder, side):
    table = pq.read_table(folder / "evaluation" / "images.parquet").to_pydict()
    chosen = [n for n, model in enumerate(table["model"]) if model == side]
    return {name: [values[n] for n in chosen] for name, values in table.items()}


def drawn(captions, attempt, samples=1):
    """What the reference draws, outside of the evaluation: rewards and probabilities."""
    noise = NoiseSource(CONFIG.evaluation.seed, "evaluation", attempt)
    batch = collect(FAMILY, REFERENCE, captions, samples, noise)
    result = reward(as_float(batch.images), list(batch.captions))
    return result.total.numpy(), result.parts["nsfw_probability"].numpy()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An evaluation of policy and reference: its folder and result."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, run(folder)


@pytest.fixture(scope="module")
def spent(tmp_path_factory):
    """An evaluation with two baselines: its folder, its result and how many images were drawn in all."""
    folder, num = tmp_path_factory.mktemp("spent"), []

    def counted(*args):
        drawn = collect(*args)
        num.append(len(drawn))
        return drawn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "collect", counted)
        result = run(folder, baselines=parse_baselines("reject_3,best_of_4"))
    return folder, result, sum(num)


# --- baselines


def test_best_of_n_keeps_the_highest_reward_of_n_draws(spent):
    folder, result, _ = spent
    twice = [caption for caption in CAPTIONS for _ in range(SAMPLES)]
    tries = [drawn(CAPTIONS, 0, SAMPLES)[0]] + [drawn(twice, attempt)[0] for attempt in (1, 2, 3)]
    rows = rows_of(folder, "best_of_4")
    assert rows["reward"] == np.max(tries, axis=0).tolist()
    assert set(rows["images_drawn"]) == {4.0}
    assert result["best_of_4"]["overall"]["images_drawn"] == 4
    assert result["policy"]["overall"]["images_drawn"] == result["reference"]["overall"]["images_drawn"] == 1
    assert len(set(np.argmax(tries, axis=0).tolist())) > 1, "otherwise nothing was chosen"


def test_reject_draws_again_until_the_detector_is_content(spent):
    folder, result, _ = spent
    kept, cost = [], []
    for caption in CAPTIONS:
        probability, tries = drawn([caption], 0, SAMPLES)[1], np.ones(SAMPLES)
        for attempt in (1, 2):
            again = np.flatnonzero(probability > 0.4)
            if len(again):
                probability[again] = np.minimum(probability[again], drawn([caption] * len(again), attempt)[1])
                tries[again] += 1
        kept += probability.tolist()
        cost += tries.tolist()
    rows = rows_of(folder, "reject_3")
    assert rows["nsfw_probability"] == pytest.approx(kept, abs=1e-6) and rows["images_drawn"] == cost
    assert {1.0, 3.0} <= set(cost) and max(kept) > 0.4, "accepted at once, late, and never"
    assert result["reject_3"]["overall"]["images_drawn"] == pytest.approx(np.mean(cost))


def test_a_baseline_costs_the_images_that_are_drawn_for_it(spent):
    folder, _, num = spent
    more = sum(sum(rows_of(folder, name)["images_drawn"]) - 14 for name in ("reject_3", "best_of_4"))
    assert num == 2 * 14 + more, "reference, policy, and all tries but the first, which is the reference's"


def test_an_image_the_detector_accepts_is_the_reference_s_own(spent):
    reference, kept = rows_of(spent[0], "reference"), rows_of(spent[0], "reject_3")
    first = [n for n, tries in enumerate(kept["images_drawn"]) if tries == 1]
    assert first == [n for n, p in enumerate(reference["nsfw_probability"]) if p <= 0.4] and first
    for name in set(reference) - {"model", "kl", "entropy"}:
        assert [kept[name][n] for n in first] == [reference[name][n] for n in first], name
    assert kept["kl"] == kept["entropy"] == [None] * 14
    assert kept["caption"] == reference["caption"] and kept["sample"] == reference["sample"]


def test_rows_that_are_replaced_are_replaced_in_every_column():
    first = {
        "reward": np.array([1.0, 5.0]),
        "tokens": np.array([[1, 1], [2, 2]]),
        "images_drawn": np.ones(2),
    }

    def redraw(rows, attempt):
        return {
            "reward": np.full(len(rows), 2.0 + attempt),
            "tokens": np.full((len(rows), 2), 10 * attempt),
            "images_drawn": np.ones(len(rows)),
        }

    kept = best_of(first, redraw, 3)
    assert kept["reward"].tolist() == [4.0, 5.0] and kept["tokens"].tolist() == [[20, 20], [2, 2]]
    assert kept["images_drawn"].tolist() == [3.0, 3.0] and first["reward"][0] == 1.0
    with pytest.raises(ValueError, match="reward term nsfw"):
        reject(first | {"nsfw_probability": np.array([np.nan, 0.1])}, redraw, 3, 0.4)


def test_baselines_are_named_as_they_are_asked_for():
    assert parse_baselines("reject, best_of_4") == [
        Baseline("reject", "reject", 8),
        Baseline("best_of_4", "best_of", 4),
    ]
    for text in ("best_of", "best_of_1", "reject_0", "rejct", ""):
        with pytest.raises(ValueError, match="--baselines"):
            parse_baselines(text)


def test_the_policy_is_compared_with_each_baseline(spent):
    folder, result, _ = spent
    assert result["baselines"] == ["reject_3", "best_of_4"]
    entry = result["against"]["best_of_4"]["overall"]["reward_mean"]
    policy_rows, kept = rows_of(folder, "policy"), rows_of(folder, "best_of_4")
    assert entry["difference"] == pytest.approx(np.mean(policy_rows["reward"]) - np.mean(kept["reward"]))


# --- checkpoints


def test_several_checkpoints_give_a_curve(tmp_path, plain):
    decoders = {2: policy(3), 4: policy(5)}
    loaded = []

    def loading(iteration):
        return lambda: loaded.append(iteration) or decoders[iteration]

    result = run(tmp_path / "curve", earlier={n: loading(n) for n in decoders})
    assert loaded == [2, 4]
    assert result["curve"] == [
        {"iteration": 0, "side": "reference"},
        {"iteration": 2, "side": "step_000002"},
        {"iteration": 4, "side": "step_000004"},
        {"iteration": 6, "side": "policy"},
    ]
    alone = run(tmp_path / "alone", policy=decoders[4], origin={**ORIGIN, "iteration": 4})
    assert result["step_000004"] == alone["policy"] and result["reference"] == alone["reference"]
    assert result["step_000002"] != result["step_000004"]
    for key in ("policy", "differences"):
        assert result[key] == plain[1][key]
    assert set(result["against"]) == {"step_000002", "step_000004"}


# --- going on after a kill


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def kill_at(monkeypatch, call):
    """Lets `call` batches be drawn; returns the list that grows by one with each."""
    calls, original = [], collect

    def counted(*args):
        if len(calls) == call:
            raise Killed
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(drawing, "collect", counted)
    return calls


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_when_a_run_evaluates_does_not_change_what_is_drawn(tmp_path, monkeypatch):
    run(tmp_path)
    calls = kill_at(monkeypatch, 0)
    other = dataclasses.replace(CONFIG.evaluation, at_end=not CONFIG.evaluation.at_end)
    run(tmp_path, dataclasses.replace(CONFIG, evaluation=other))
    assert not calls


@pytest.mark.parametrize("call", [0, 2, 5])
def test_killed_and_started_again_gives_the_same_result(plain, tmp_path, monkeypatch, call):
    """Three batches a side."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, call)
        run(tmp_path / "killed")
    assert not (tmp_path / "killed" / "evaluation.json").exists()
    with monkeypatch.context() as patch:
        calls = kill_at(patch, 99)
        run(tmp_path / "killed")
    assert len(calls) == 6 - call, "finished batches are not drawn again"
    assert files_of(tmp_path / "killed") == files_of(plain[0])


def test_what_is_called_between_batches_may_end_it_and_the_batches_stay(plain, tmp_path, monkeypatch):
    asked = []

    def between():
        asked.append(None)
        if len(asked) == 3:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, between=between)
    calls = kill_at(monkeypatch, 99)
    run(tmp_path)
    assert len(calls) == 6 - 2
    assert files_of(tmp_path) == files_of(plain[0])


def test_a_kill_in_a_baseline_and_a_damaged_batch_cost_only_themselves(spent, tmp_path, monkeypatch):
    baselines = parse_baselines("best_of_4,reject_3")  # in another order, which changes no side
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3 + 3 + 2)  # three batches of the reference, one of best_of_4, a part of its second
        run(tmp_path / "killed", baselines=baselines)
    batches = sorted((tmp_path / "killed" / "evaluation" / BATCHES).rglob("*.npz"))
    assert len(batches) == 4
    reference = next(path for path in batches if "reference" in path.parent.name)
    reference.write_bytes(reference.read_bytes()[:100])
    with monkeypatch.context() as patch:
        calls = kill_at(patch, 99)
        result = run(tmp_path / "killed", baselines=baselines)
    again = [args[4].iteration for args in calls]
    assert again[:8] == [0] + [1, 2, 3] * 2 + [1], "one of the reference, two of best_of_4, then the next"
    assert result == spent[1] | {"baselines": ["best_of_4", "reject_3"]}


@pytest.mark.parametrize(
    "change",
    [
        {
            "config": dataclasses.replace(
                CONFIG, reward=RewardConfig([{"name": "nsfw", "unsafe_threshold": 0.3}])
            )
        },
        {"config": dataclasses.replace(CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, seed=1))},
        {"captions": CAPTIONS[::-1]},
        {"measures": dataclasses.replace(MEASURES, sha256={"detector": "b" * 64})},
        {"family": with_parts(vqgan=Vqgan(24))},
        {"family": with_parts(encoder=tiny_bart(seed=5)[0])},
    ],
    ids=["reward", "seed", "captions", "detector", "vqgan", "encoder"],
)
def test_batches_of_other_settings_are_not_taken_over(tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 4)
        run(tmp_path)
    calls = kill_at(monkeypatch, 99)
    run(tmp_path, **change)
    assert len(calls) == 6 and len(list((tmp_path / "evaluation" / BATCHES).iterdir())) == 2


def test_captions_of_a_file_leave_what_was_drawn_for_the_held_out_ones(tmp_path, monkeypatch):
    first = run(tmp_path)
    calls = kill_at(monkeypatch, 99)
    given = evaluate(CONFIG, tmp_path, SUBJECT, MEASURES, CAPTIONS[:3], captions_file="mine.txt")
    assert len(calls) == 2 and given["captions_file"] == "mine.txt"
    assert run(tmp_path) == first and len(calls) == 2, "nothing is drawn again"


def test_a_repeated_evaluation_draws_only_what_has_changed(tmp_path, monkeypatch):
    first = run(tmp_path)
    calls = kill_at(monkeypatch, 99)
    assert run(tmp_path) == first and not calls
    second = run(tmp_path, policy=policy(8))
    assert len(calls) == 3 and second["reference"] == first["reference"]
    assert second["policy"] != first["policy"]
    folders = sorted(path.name.split("_")[0] for path in (tmp_path / "evaluation" / BATCHES).iterdir())
    assert folders == ["policy", "reference"], "those of the first policy are gone"
    run(tmp_path, policy=policy(8), baselines=parse_baselines("best_of_2"))
    assert len(calls) == 3 + 3, "a baseline alone"


def test_batches_of_another_policy_are_not_taken_over(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 4)
        run(tmp_path)
    calls = kill_at(monkeypatch, 99)
    run(tmp_path, policy=policy(8))
    assert len(calls) == 3, "the reference is the same"


def test_the_hash_of_weights_sees_every_value():
    decoder = policy(3)
    before = weights_sha256(decoder)
    assert before == weights_sha256(policy(3)) != weights_sha256(policy(4))
    with torch.no_grad():
        list(decoder.parameters())[-1].view(-1)[0] += 1e-6
    assert weights_sha256(decoder) != before


def test_a_file_that_changed_under_its_name_is_seen(tmp_path):
    world = World(shutil.copytree(World().folder, tmp_path / "world"))
    heldout = EvaluationConfig(heldout_clip=ClipConfig(str(world.clip)), heldout_detector=str(world.detector))
    config, before = Config(evaluation=heldout), {}
    for changed, names in (
        (world.detector, {"detector", "heldout_detector"}),
        (world.clip / "open_clip_config.json", {"clip", "heldout_clip"}),
        (world.judge, {"judge"}),
    ):
        before = before or measures_sha256(config, world)
        changed.write_bytes(changed.read_bytes() + b" ")
        after = measures_sha256(config, world)
        assert {name for name in before if after[name] != before[name]} == names
        before = after
    assert set(before) == {"clip", "detector", "judge", "heldout_clip", "heldout_detector"}
    terms = [{"name": "nsfw", "detector": str(world.judge)}]
    published = Config(clip=ClipConfig("ViT-B-32", "openai"), reward=RewardConfig(terms))
    assert measures_sha256(published, None) == {
        "detector": hashlib.sha256(world.judge.read_bytes()).hexdigest()
    }


def test_the_hash_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "a").write_text("1")
    (tmp_path / "folder" / "inner" / "b").write_text("2")
    seen = {path_sha256(tmp_path / "folder")}
    (tmp_path / "folder" / "inner" / "b").write_text("3")
    seen.add(path_sha256(tmp_path / "folder"))
    (tmp_path / "folder" / "a").rename(tmp_path / "folder" / "c")
    seen.add(path_sha256(tmp_path / "folder"))
    assert len(seen) == 3 and len(seen.pop()) == 64


# --- what is measured


def test_the_numbers_do_not_depend_on_how_images_are_batched(spent, tmp_path):
    larger = dataclasses.replace(CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, batch_size=100))
    run(tmp_path, larger, baselines=parse_baselines("reject_3,best_of_4"))
    for side in ("reference", "policy", "reject_3", "best_of_4"):
        small, large = rows_of(spent[0], side), rows_of(tmp_path, side)
        assert small["reward"] == large["reward"] and small["images_drawn"] == large["images_drawn"]


def test_kl_and_entropy_are_sums_over_all_codes_of_the_first_image_of_each_caption(plain):
    drawn_by = policy(7)
    drawn = collect(FAMILY, drawn_by, CAPTIONS, SAMPLES, NoiseSource(CONFIG.evaluation.seed, "evaluation"))
    text = drawn.prompts.select(drawn.caption_index)
    log_p, log_q = (
        log_pi_of_tokens(decoder, drawn.tokens, text, CONFIG.policy).double().detach().numpy()
        for decoder in (drawn_by, REFERENCE)
    )
    p = np.exp(log_p)
    surprise = np.where(p > 0, p * log_p, 0).sum(axis=(1, 2))
    cross = np.where(p > 0, p * log_q, 0).sum(axis=(1, 2))
    shown = rows_of(plain[0], "policy")
    assert shown["kl"][::SAMPLES] == pytest.approx((surprise - cross)[::SAMPLES], rel=1e-4)
    assert shown["entropy"][::SAMPLES] == pytest.approx(-surprise[::SAMPLES], rel=1e-4)
    assert min(shown["kl"][::SAMPLES]) > 0.1 and shown["kl"][1::SAMPLES] == [None] * len(CAPTIONS)
    assert rows_of(plain[0], "reference")["kl"][::SAMPLES] == [0.0] * len(CAPTIONS)


def test_diversity_is_the_mean_distance_of_the_pairs(tmp_path):
    config = dataclasses.replace(
        CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, samples_per_caption=3)
    )
    result = run(tmp_path, config)
    noise = NoiseSource(config.evaluation.seed, "evaluation")
    images = collect(FAMILY, REFERENCE, CAPTIONS, 3, noise).images
    vectors = embed(as_float(images)).reshape(7, 3, -1)
    distances = [1 - v[i] @ v[j] for v in vectors for i, j in ((0, 1), (0, 2), (1, 2))]
    assert result["reference"]["overall"]["diversity"] == pytest.approx(float(np.mean(distances)), abs=1e-6)


def test_a_reward_without_embeddings_leaves_diversity_missing(plain, tmp_path):
    def bare(*arguments):
        return dataclasses.replace(reward(*arguments), embeddings=None)

    result = run(tmp_path, measures=dataclasses.replace(MEASURES, reward=bare))
    assert result["policy"]["overall"]["diversity"] is None
    assert result["policy"]["overall"]["reward_mean"] == plain[1]["policy"]["overall"]["reward_mean"]


def test_thumbnails_show_what_was_drawn(plain):
    with np.load(plain[0] / "evaluation" / "thumbnails.npz") as stored:
        rows, pictures = stored["rows"], stored["reference"]
    noise = NoiseSource(CONFIG.evaluation.seed, "evaluation")
    images = collect(FAMILY, REFERENCE, CAPTIONS, SAMPLES, noise).images
    assert rows.tolist() == list(range(14))
    assert (pictures == images.permute(0, 2, 3, 1).numpy()).all()


def test_the_result_says_what_it_came_from(plain, tmp_path):
    folder, result = plain
    assert result["policy_sha256"] == "f" * 64 and result["iteration"] == 6
    assert result["reference_sha256"] == weights_sha256(REFERENCE)
    assert result["seed"] == CONFIG.evaluation.seed and "torch" in result["versions"]
    assert result["captions_sha256"] != run(tmp_path, captions=CAPTIONS[1:])["captions_sha256"]
    assert json.loads((folder / "evaluation.json").read_text()) == result


class ShortTokenizer(Tokenizer):
    """Captions of the numbers 4, 5 and 6 are too long for it."""

    def encode(self, captions):
        long = sum(text.endswith(("4", "5", "6")) for text in captions)
        return TextTokens(super().encode(captions).tokens, long)


def test_cut_captions_are_counted_once_whatever_is_drawn_of_them(plain, tmp_path):
    family = with_parts(tokenizer=ShortTokenizer())
    more = {"baselines": parse_baselines("best_of_2"), "earlier": {3: lambda: policy(8)}}
    result = run(tmp_path, family=family, **more)
    assert result["num_captions_truncated"] == 3
    assert json.loads((tmp_path / "evaluation.json").read_text())["num_captions_truncated"] == 3
    assert plain[1]["num_captions_truncated"] == 0


def test_captions_are_never_read_all_at_once(tmp_path):
    """The text encoder's memory grows with them: thousands need gigabytes, with large models hundreds."""
    sizes, encoder = [], FAMILY.parts.encoder

    hook = encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        run(tmp_path)
    finally:
        hook.remove()
    assert max(sizes) <= CONFIG.evaluation.batch_size < len(CAPTIONS)


def test_heldout_measures_stand_beside_the_reward_s(plain, tmp_path):
    def heldout(pixels, captions):
        return {
            "heldout_nsfw_probability": pixels[:, 0, 0].mean(dim=1).numpy(),
            "heldout_clip_similarity": pixels[:, 1].mean(dim=(1, 2)).numpy(),
        }

    result = run(tmp_path, measures=dataclasses.replace(MEASURES, heldout=heldout))
    rows = rows_of(tmp_path, "policy")
    overall = result["policy"]["overall"]
    assert overall["heldout_unsafe_rate"] == np.mean(np.array(rows["heldout_nsfw_probability"]) > 0.4)
    safe = np.array(rows["nsfw_probability"]) <= 0.1
    similar = np.array(rows["heldout_clip_similarity"])[safe]
    expected = similar.mean() if safe.any() else None
    assert overall["heldout_clip_similarity"] == (None if expected is None else pytest.approx(expected))
    assert plain[1]["policy"]["overall"]["heldout_unsafe_rate"] is None


# --- the command line


def test_checkpoints_baselines_and_heldout_measures_from_the_command_line(tiny_run, tmp_path, cli):
    run_dir = shutil.copytree(tiny_run.run_dir, tmp_path / "copy")
    world = World()
    outcome = cli(
        command.main,
        *(run_dir, "--num_captions", "4", "--num_samples", "1", "--checkpoints", "all"),
        *("--baselines", "best_of_2", "--heldout_clip", world.clip, "--heldout_detector", world.detector),
    )
    assert outcome.code == 0, outcome.err
    result = json.loads((run_dir / "evaluation.json").read_text())
    assert [point["iteration"] for point in result["curve"]] == [0, 2, 4]
    assert result["best_of_2"]["overall"]["images_drawn"] == 2 and "best_of_2: unsafe rate" in outcome.out
    # The held-out measures are the reward's own here, so that the numbers are known.
    rows = rows_of(run_dir, "policy")
    assert rows["heldout_nsfw_probability"] == rows["nsfw_probability"]
    assert rows["heldout_clip_similarity"] == rows["clip_similarity"]
    page = (run_dir / "report.html").read_text()
    assert "Drawing more images instead" in page and "Signs of reward hacking" in page
    for name in ("policy", "captions", "clip", "detector", "judge"):
        assert result[f"{name}_sha256"][:16] in page
    assert result["heldout_detector_sha256"] == path_sha256(world.detector)
    state = json.loads((run_dir / "checkpoints" / "step_000004" / "state.json").read_text())
    assert result["policy_sha256"] == state["files"]["policy.safetensors"]["sha256"]
    # One checkpoint alone is the policy.
    alone = (run_dir, "--num_captions", "4", "--num_samples", "1", "--checkpoints", "2")
    assert cli(command.main, *alone).code == 0
    again = json.loads((run_dir / "evaluation.json").read_text())
    assert again["policy"]["overall"]["reward_mean"] == result["step_000002"]["overall"]["reward_mean"]
    assert again["iteration"] == 2 and again["policy"] != result["policy"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--checkpoints", "3"), "it has 2, 4"),
        (("--checkpoints", "newest"), "has 2, 4"),
        (("--baselines", "best"), "best_of_N"),
        (("--heldout_detector", "d.safetensors"), "evaluation.heldout_clip"),
        (("--heldout_clip", "ViT-Q"), "evaluation.heldout_clip"),
        (("--num_captions", "0"), "evaluation.num_captions"),
    ],
)
def test_a_mistake_costs_one_line_and_changes_nothing(tiny_run, cli, arguments, words):
    before = files_of(tiny_run.run_dir)
    outcome = cli(command.main, tiny_run.run_dir, *arguments)
    assert outcome.code == 2 and words in outcome.error
    assert files_of(tiny_run.run_dir) == before


def test_one_checkpoint_is_the_policy(tiny_run, tmp_path):
    folders = command.choose_checkpoints(tiny_run.run_dir, "2")
    assert list(folders) == [2] and folders[2].name == "step_000002"
    assert list(command.choose_checkpoints(tiny_run.run_dir, "4,2")) == [2, 4]


def test_a_heldout_detector_of_another_clip_is_refused():
    world = World()
    with pytest.raises(ValueError, match="reads embeddings of CLIP"):
        folder = ClipConfig(str(world.clip.parent / "iconworld_clip"))
        clip = load_heldout(folder, None, torch.device("cpu")).clip
        other = dataclasses.replace(clip, preprocess=clip.preprocess | {"mean": (0.4, 0.4, 0.4)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dalle_ppo.evaluation.heldout.load_clip", lambda *args: other)
            load_heldout(folder, str(world.detector), torch.device("cpu"))
    assert load_heldout(None, None, torch.device("cpu")) is None


def test_captions_of_a_file_are_distinct_and_not_held_out(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a boat\na car\na boat\na tree\n")
    assert {record.text for record in captions_of_file(str(path), 10)} == {"a boat", "a car", "a tree"}
    assert len(captions_of_file(str(path), 2)) == 2


def test_captions_of_a_file_are_read_by_the_runs_settings_unless_told_otherwise(tiny_run, tmp_path, cli):
    run_dir = shutil.copytree(tiny_run.run_dir, tmp_path / "copy")
    settings = (run_dir / "config.yaml").read_text()
    assert "  column: null\n" in settings
    (run_dir / "config.yaml").write_text(settings.replace("  column: null\n", "  column: words\n"))
    (tmp_path / "a.csv").write_text("text,words\nx,a boat\ny,a car\n")
    rows = [f"prompt {n}\tAbstract\tBasic\t\n" for n in range(1 + TINY_SETTINGS["evaluation.num_captions"])]
    (tmp_path / "c.tsv").write_text("Prompt\tCategory\tChallenge\tNote\n" + "".join(rows))
    frozen = run_dir / "evaluation" / "captions.parquet"

    def captions(*arguments, column="TEXT"):
        outcome = cli(command.main, run_dir, *arguments)
        assert outcome.code == 0, outcome.err
        return set(pq.read_table(frozen)[column].to_pylist())

    assert captions("--captions", tmp_path / "a.csv") == {"a boat", "a car"}
    assert captions("--captions", frozen) == {"a boat", "a car"}, "an earlier evaluation's are drawn again"
    assert captions("--captions", tmp_path / "a.csv", "--captions.column", "text") == {"x", "y"}
    challenge = ("--captions", f"partiprompts:{tmp_path / 'c.tsv'}", "--captions.tag_column", "Challenge")
    assert captions(*challenge, column="NSFW") == {"Basic"} and len(pq.read_table(frozen)) == len(rows)
    refused = cli(command.main, run_dir, "--captions.column", "text")
    assert refused.code == 2 and "--captions.column applies to the file in --captions" in refused.error


def last_row(pixels, captions, metadata=None):
    """A judge that likes the rows that the reward does not look at."""
    return RewardResult(pixels[:, 0, -1].mean(dim=1), {"green": pixels[:, 1].mean(dim=(1, 2))})


def test_judges_measure_every_image_of_every_side(tmp_path):
    entry = {"name": "test_evaluate:last_row", "weight": -1.0}
    evaluation = dataclasses.replace(CONFIG.evaluation, judges=[entry])
    config = dataclasses.replace(CONFIG, evaluation=evaluation)
    label = "test_evaluate:last_row"
    measures = dataclasses.replace(MEASURES, judges={label: last_row})
    result = run(tmp_path, config, measures=measures, earlier={3: lambda: policy(9)})
    plain_result = run(tmp_path / "plain", earlier={3: lambda: policy(9)})
    for name, number in plain_result["policy"]["overall"].items():
        if name != "intervals":
            assert result["policy"]["overall"][name] == number, "judges change no other number"
    for side in ("reference", "policy", "step_000003"):
        values = rows_of(tmp_path, side)[f"judge/{label}"]
        summary = result[side]["overall"]
        assert len(values) == len(CAPTIONS) * SAMPLES and np.std(values) > 0
        assert summary[f"judge/{label}"] == pytest.approx(np.mean(values))
        low, high = summary["intervals"][f"judge/{label}"]
        assert low < summary[f"judge/{label}"] < high and f"judge/{label}/green" in summary
    assert [point["iteration"] for point in result["judges"]["curve"]] == [0, 3, 6]
    assert result["judges"]["better"] == {label: "down"} and "judges" not in plain_result
    page = write_report(tmp_path).read_text("utf-8")
    assert "Proxy against judges" in page and f"Reward and judge {label} over checkpoints" in page
    assert "Proxy against judges" not in write_report(tmp_path / "plain").read_text("utf-8")


def test_a_suite_is_drawn_once_per_caption_from_the_same_noise(tmp_path):
    prompts = [CaptionRecord(f"caption {n}", ("one", "two")[n % 2], f"{n:016x}") for n in range(6)]
    seen = []

    def bright(images, captions):
        seen.append((images, captions))
        return as_float(images)[:, 0].mean(dim=(1, 2)).numpy() > 0.4

    suite = Suite("bright", prompts, bright, lambda: np.ones(6))
    result = run(tmp_path, measures=dataclasses.replace(MEASURES, suite=suite))["suite"]
    half = sum(len(captions) for _, captions in seen) // 2
    assert half == len(prompts), "one image per caption and side"
    own = collect(FAMILY, REFERENCE, prompts, 1, NoiseSource(CONFIG.evaluation.seed, "evaluation", 0))
    expected = bright(own.images, [])
    assert result["tasks"]["overall"]["reference"]["score"] == pytest.approx(expected.mean())
    assert result["tasks"]["one"]["reference"]["score"] == pytest.approx(expected[::2].mean())
    again, drawn_before = len(seen), result
    assert run(tmp_path, measures=dataclasses.replace(MEASURES, suite=suite))["suite"] == drawn_before
    assert len(seen) == again, "kept batches are not drawn again"
    assert "What the model can draw" in write_report(tmp_path).read_text("utf-8")


def test_judges_and_suite_of_the_command_line():
    argv = ["runs/a", "--judges", "my:first, my:second", "--suite", "iconworld"]
    changed = command.changed_config(CONFIG, command.parse_arguments(argv)).evaluation
    assert [judge.label for judge in changed.parsed_judges] == ["my:first", "my:second"]
    assert changed.suite == "iconworld"
