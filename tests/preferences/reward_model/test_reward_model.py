"""From a store to a head: what is learned, what is left out, and what is refused in one line."""

import json
from dataclasses import replace

import pytest
import torch
from toy_preferences import coloured, toy_clip, toy_store

from dalle_ppo import reward_model
from dalle_ppo.config.term import read_terms
from dalle_ppo.models.heads.nsfw import load_detector, load_head
from dalle_ppo.models.heads.preference import load_preference
from dalle_ppo.preferences.reward_model import training
from dalle_ppo.preferences.reward_model.data import embed, find_answers, part_of, split
from dalle_ppo.preferences.reward_model.network import FitSettings
from dalle_ppo.preferences.reward_model.training import accuracy_on, train_reward_model
from dalle_ppo.preferences.store import Answer, Store
from dalle_ppo.rewards import preference
from dalle_ppo.rewards.shared import Shared

FAST = FitSettings(members=2, hidden=8, penalties=(0.01,), steps=20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    store = toy_store(folder / "preferences", captions=150, pictures=3)
    return (
        store,
        folder / "rm.safetensors",
        train_reward_model(store, folder / "rm.safetensors", toy_clip(), FAST),
    )


def test_it_learns_what_the_rater_likes(trained):
    _, out, report = trained
    assert report.accuracy.low > 0.75 and not report.accuracy.is_chance
    assert report.curve[-1].accuracy > report.curve[0].accuracy
    head = load_preference(out)
    red, green = (
        torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 4, 4) for rgb in ((0.9, 0.1, 0.5), (0.1, 0.9, 0.5))
    )
    clip, captions = toy_clip(), ["a boat nobody has seen"] * 2
    mean, spread = head(clip.embed_images(torch.cat([red, green])), clip.embed_texts(captions))
    assert mean[0] > mean[1] + 1 and (spread > 0).all()


def test_the_file_tells_its_data_and_its_numbers_lie_beside_it(trained):
    store, out, report = trained
    assert load_preference(out).info.source_sha256 == find_answers(store).sha256 == report.data_sha256
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["accuracy"]["value"] == report.accuracy.value and sum(told["answers"].values()) == 150
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_a_reward_model_is_no_detector(trained):
    for load in (load_detector, load_head):
        with pytest.raises(ValueError, match="use it as the reward term preference"):
            load(trained[1])


def shared(clip):
    return Shared(lambda: clip)


def term(path, beta):
    (found,) = read_terms([{"name": "preference", "reward_model": str(path), "beta": beta}])
    return found.own


def test_the_term_is_the_mean_minus_beta_times_the_spread(trained):
    images, captions, own = torch.rand(5, 3, 4, 4), list("abcde"), shared(toy_clip())
    load_preference(trained[1])
    results = []
    for beta in (0, 2.5):
        reward = preference.load(term(trained[1], beta), own)
        with own.batch(images, captions):
            results.append(reward(images, captions))
    plain, careful = results
    head = load_preference(trained[1])
    clip = toy_clip()
    members = head.layers(
        torch.cat([
            8**0.5 * clip.embed_images(images),
            8**0.5 * clip.embed_texts(captions),
            8 * clip.embed_images(images) * clip.embed_texts(captions),
        ], dim=1)
    )  # fmt: skip
    torch.testing.assert_close(plain.total, members.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(careful.total, members.mean(1) - 2.5 * members.std(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(careful.parts["preference_spread"], members.std(1), rtol=1e-4, atol=1e-5)


def test_another_clip_is_refused(trained):
    with pytest.raises(ValueError, match="returns different ones: their cosine on the probes"):
        preference.load(term(trained[1], 1), shared(toy_clip(seed=1)))


@pytest.mark.parametrize(
    "settings, message",
    [({}, "preference needs reward_model"), ({"reward_model": "a", "beta": -1}, "beta is -1")],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        read_terms([{"name": "preference", **settings}])


def test_no_caption_is_in_two_parts_and_new_captions_move_none(tmp_path):
    store = toy_store(tmp_path, captions=80)
    rankings, _ = embed(store, find_answers(store).answers, toy_clip())
    parts = split(rankings)
    names = {name: set(part.captions) for name, part in parts.items()}
    assert sum(map(len, names.values())) == 80 and len(set.union(*names.values())) == 80
    assert all(part_of(caption) == name for name, captions in names.items() for caption in captions)


def test_agreement_with_new_answers(trained, tmp_path):
    new = toy_store(tmp_path, captions=60, seed=5)
    turned = toy_store(tmp_path / "turned", captions=60, seed=5, wrong=1.0)
    head = load_preference(trained[1])
    right = accuracy_on(head, new, new.answers(), toy_clip())
    assert right.value > 0.8
    assert accuracy_on(head, turned, turned.answers(), toy_clip()).value == pytest.approx(1 - right.value)


def test_the_check_counts_what_learning_would(trained, tmp_path):
    """A rating counts as a ranking, and a picture that is ranked against itself as nothing."""
    store = toy_store(tmp_path, captions=30, seed=5)
    head, answers = load_preference(trained[1]), store.answers()
    right = accuracy_on(head, store, answers, toy_clip())
    ratings = [
        replace(a, kind="rating", ranks=None, ratings=tuple(-float(r) for r in a.ranks)) for a in answers
    ]
    itself = [replace(a, images=(a.images[0],) * 2, ranks=(1, 2)) for a in answers]
    assert accuracy_on(head, store, ratings, toy_clip()) == right
    assert accuracy_on(head, store, [*answers, *itself], toy_clip()) == right


def test_scores_come_back_from_the_device_of_the_clip(trained, tmp_path):
    """A head lives on the CLIP's device, the features of pictures on the CPU; "meta" stands for a GPU."""
    store, head, seen = toy_store(tmp_path, captions=30), load_preference(trained[1]), []
    clip, layers = toy_clip(), head.layers

    class Layers(torch.nn.Module):
        def forward(self, features):
            seen.append(features.device.type)
            return layers(torch.zeros(features.shape))

    clip.__class__ = type("Elsewhere", (type(clip),), {"device": torch.device("meta")})
    head.layers = Layers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "embed", lambda store, answers, clip: embed(store, answers, toy_clip()))
        accuracy_on(head, store, store.answers(), clip)
    assert seen == ["meta"]


# --- bad input


def test_an_empty_store_is_told(tmp_path, cli):
    Store(tmp_path / "preferences").append(Answer("a", (), "skip", "ann", "person", "s"))
    outcome = cli(reward_model.main, tmp_path, "--out", tmp_path / "rm.safetensors")
    assert outcome.code == 2 and "holds no rankings yet; label pictures" in outcome.error
    assert cli(reward_model.main, tmp_path / "none", "--out", tmp_path / "rm.safetensors").code == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".png"])
def test_no_file_is_replaced(tmp_path, cli, suffix):
    toy_store(tmp_path / "preferences", captions=30)
    there = tmp_path / f"notes{suffix}"
    there.write_text("mine")
    arguments = (tmp_path, "--out", tmp_path / "notes.safetensors", "--clip_model", "builtin")
    outcome = cli(reward_model.main, *arguments, "--members", 1, "--steps", 1, "--no_curve")
    assert outcome.code == 2 and f"{there}" in outcome.error and "already exists" in outcome.error
    assert there.read_text() == "mine"


def test_a_rater_who_always_answers_1_is_left_out(tmp_path):
    store = toy_store(tmp_path, captions=30)
    lazy = [replace(a, id=a.id[::-1], rater="bob", ranks=(1, 2)) for a in store.answers()]
    store.append_all(lazy)
    found = find_answers(store)
    assert found.raters == {"ann": 30}
    assert "30 answers of bob left out: all pick one position, whatever it shows" in found.notes
    only = Store(tmp_path / "lazy")
    only.append_all(lazy)
    for answer in lazy:  # with pictures that are there
        for key in answer.images:
            target = only.image_path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(store.image_path(key).read_bytes())
    with pytest.raises(ValueError, match="nothing to learn from: 30 answers of bob left out"):
        find_answers(only)


def test_contradictions_are_counted_with_what_they_cost(tmp_path):
    store = toy_store(tmp_path, captions=20)
    store.append_all(
        [replace(a, id=a.id[::-1], rater="bob", ranks=a.ranks[::-1]) for a in store.answers()[:10]]
    )
    # 30 votes, of which 10 cannot be met
    assert find_answers(store).notes == (
        "10 pairs of pictures were judged both ways: no model can agree with more than 67%",
    )


def test_answers_without_their_pictures_are_left_out(tmp_path):
    store = toy_store(tmp_path, captions=60)
    answers = store.answers()
    store.image_path(answers[0].images[0]).unlink()
    found = find_answers(store)
    assert len(found.answers) == 59 and found.notes[0].startswith("1 of 60 answers left out: 1 picture files")
    store.image_path(answers[1].images[0]).write_bytes(coloured((0, 0, 0))[:20])
    rankings, notes = embed(store, found.answers, toy_clip())
    assert len(rankings) == 58 and notes == ["1 answers left out: 1 pictures cannot be read"]
    for path in (tmp_path / "images").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="nothing to learn from: 60 of 60 answers left out"):
        find_answers(store)


def test_too_few_captions_are_told(tmp_path):
    store = toy_store(tmp_path, captions=12)
    with pytest.raises(ValueError, match=r"about 12 captions, of which .* but 5 are needed"):
        split(embed(store, find_answers(store).answers, toy_clip())[0])


def test_answers_by_chance_are_called_chance(tmp_path):
    store = toy_store(tmp_path, captions=150, wrong=0.5)
    report = train_reward_model(store, tmp_path / "rm.safetensors", toy_clip(), FAST, with_curve=False)
    assert report.accuracy.is_chance and any("may be chance" in line for line in report.lines())


def test_the_model_is_kept_though_its_outlook_fails(tmp_path, monkeypatch):
    def fail(curve):
        raise ValueError("no outlook")

    monkeypatch.setattr(training, "outlook", fail)
    store, out = toy_store(tmp_path / "store", captions=60), tmp_path / "rm.safetensors"
    with pytest.raises(ValueError, match="no outlook"):
        train_reward_model(store, out, toy_clip(), FAST, with_curve=False)
    assert load_preference(out) is not None


def test_a_store_without_settings_needs_a_clip(tmp_path, cli):
    toy_store(tmp_path / "preferences", captions=3)
    outcome = cli(reward_model.main, tmp_path, "--out", tmp_path / "rm.safetensors")
    assert outcome.code == 2 and "give --clip_model, such as builtin" in outcome.error


@pytest.mark.parametrize("option", [("--clip_pretrained", "openai"), ("--quick_gelu", "true")])
def test_options_of_a_clip_that_is_not_named_are_refused(tmp_path, cli, option):
    outcome = cli(reward_model.main, tmp_path, "--out", tmp_path / "rm.safetensors", *option)
    assert outcome.code == 2 and f"{option[0]} is for --clip_model" in outcome.error


def test_ratings_count_by_their_order(tmp_path):
    store = toy_store(tmp_path, captions=1)
    (answer,) = store.answers()
    rated = replace(answer, id="0" * 32, kind="rating", ranks=None, ratings=(2.0, 7.5))
    only = toy_store(tmp_path / "other", captions=1)
    only.append(rated)
    assert [a.ranks for a in find_answers(only).answers][1] == (2, 1)


def test_a_picture_drawn_twice_counts_once(tmp_path):
    store = toy_store(tmp_path, captions=1)
    (answer,) = store.answers()
    first, second = answer.images
    both = {"images": (first, second, first), "ranks": (2, 1, 3)}
    store.append(replace(answer, id="0" * 32, **both))
    store.append(replace(answer, id="1" * 32, images=(first, first)))
    found = find_answers(store).answers
    assert [(a.images, a.ranks) for a in found[1:]] == [((first, second), (2, 1))]
