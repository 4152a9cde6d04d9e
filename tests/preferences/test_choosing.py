"""Which sets are asked about: what answers tell, one in four as it comes, the same after a new start."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from fake_endpoint import FakeEndpoint
from label_pages import desk_of, full
from PIL import Image as Picture
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from toy_preferences import coloured, toy_clip

from dalle_ppo import align, label
from dalle_ppo.build.labels import load_head
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.preferences.answer import Answer, PictureSet
from dalle_ppo.preferences.choosing import Disagreement, disagreement
from dalle_ppo.preferences.chosen_sets import CANDIDATES, Choice, ChosenSets
from dalle_ppo.preferences.reward_model.data import Rankings
from dalle_ppo.preferences.reward_model.network import Ensemble, FitSettings
from dalle_ppo.preferences.reward_model.training import Learned, save_reward_model
from dalle_ppo.preferences.store import Store


def random_model(out, clip, width, members=3):
    """A reward model whose members have never learned anything, so they disagree."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 3 * width, generator=generator)
    ensemble = Ensemble(rows, FitSettings(members=members, hidden=8), generator)
    with torch.no_grad():
        ensemble.weights[-1] *= 20
    pairs = Rankings(rows, torch.arange(20).view(10, 2), torch.tensor([[1, 2]] * 10), ("a boat",) * 10)
    save_reward_model(out, Learned(ensemble, 1.0, {"fit": pairs}), clip, "0" * 64)
    return out


def test_two_members_disagree_by_the_jensen_shannon_divergence_of_their_choices():
    scores = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)).double() * 3
    p, q = scores.softmax(dim=0).T.numpy()
    assert disagreement(scores) == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-9)


def test_members_that_are_sure_of_different_pictures_disagree_most():
    assert disagreement(1000 * torch.eye(4)) == pytest.approx(np.log(4))
    assert disagreement(torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])) == pytest.approx(0, abs=1e-12)
    # Pictures that all members find alike are hard, but an answer tells nothing of who is right.
    assert disagreement(torch.zeros(4, 3) + torch.tensor([0.0, 5.0, -5.0])) == pytest.approx(0, abs=1e-12)


@pytest.fixture
def toy(tmp_path):
    """Twelve sets of three random colours, and a reward model."""
    store, rng, clip = Store(tmp_path / "preferences"), np.random.default_rng(5), toy_clip()
    sets = [
        PictureSet(f"{n:016x}", f"boat {n}", tuple(store.add_image(coloured(rgb), "boat") for rgb in colours))
        for n, colours in enumerate(rng.random((12, 3, 3)))
    ]
    return store, clip, sets, load_head(random_model(tmp_path / "rm.safetensors", clip, 8), clip)


def test_sets_come_in_the_order_of_what_their_answer_tells(toy):
    store, clip, sets, head = toy
    wanted = []
    for shown in sets:
        files = [store.image_path(key) for key in shown.images]
        pixels = torch.stack([torch.from_numpy(np.array(opened(file))) for file in files])
        images = clip.embed_images(pixels.permute(0, 3, 1, 2).float() / 255)
        texts = clip.embed_texts([shown.caption] * 3)
        one = 8**0.5
        scores = head.layers(torch.cat([images * one, texts * one, images * texts * 8], dim=1))
        best = scores.detach().double().softmax(dim=0).numpy()
        wanted.append(entropy(best.mean(axis=1)) - entropy(best, axis=0).mean())
    choose = Disagreement(head, store, clip)
    assert choose.told(sets) == pytest.approx(wanted, abs=1e-5) and max(wanted) > 0.1
    assert choose(sets) == np.argsort(-np.array(wanted), kind="stable").tolist() == choose(sets)


def opened(file):
    return Picture.open(file).convert("RGB")


def test_a_picture_drawn_twice_is_one_choice_and_a_lost_one_tells_nothing(toy):
    store, clip, sets, head = toy
    one, two, three = sets[0].images
    twice = PictureSet("a", sets[0].caption, (one, two, two))
    once = PictureSet("b", sets[0].caption, (one, two))
    same = PictureSet("c", sets[0].caption, (one, one, one))
    store.image_path(three).unlink()
    told = Disagreement(head, store, clip).told([twice, once, same, sets[0]])
    assert told[0] == told[1] > 0 and told[2:] == [0, 0]


def test_one_member_cannot_disagree(tmp_path):
    clip = toy_clip()
    head = load_head(random_model(tmp_path / "one.safetensors", clip, 8, members=1), clip)
    with pytest.raises(
        ValueError, match=r"one\.safetensors has one member, which cannot disagree; fit it with"
    ):
        Disagreement(head, Store(tmp_path), clip)


class Drawn:
    """Draws sets without pictures, and notes which."""

    def __init__(self, folder):
        self.store, self.numbers = Store(folder), []
        self.key = self.store.add_image(coloured((1, 0, 0)), "a boat")
        self.other = self.store.add_image(coloured((0, 1, 0)), "a boat")

    def set_id(self, number):
        return f"{number:016x}"

    def draw_many(self, numbers):
        self.numbers += numbers
        return [PictureSet(self.set_id(n), "a boat", (self.key, self.other)) for n in numbers]


def highest(sets):
    return sorted(range(len(sets)), key=lambda place: -int(sets[place].id, 16))


def lowest(sets):
    return list(range(len(sets)))


def number_of(shown):
    return int(shown.id, 16)


def test_one_of_four_is_fair_and_three_are_chosen(tmp_path):
    sets = ChosenSets(Drawn(tmp_path), highest, "1" * 64).draw_many(range(8))
    assert [number_of(shown) for shown in sets] == [0, 15, 14, 13, 16, 31, 30, 29]
    assert [shown.chosen for shown in sets] == [False, True, True, True] * 2


def test_a_new_start_shows_the_same_sets_and_draws_no_others(tmp_path):
    first = ChosenSets(Drawn(tmp_path), highest, "1" * 64)
    assert [first.set_id(n) for n in range(4)] == [f"{n:016x}" for n in (0, 15, 14, 13)]
    assert Counter(first._drawer.numbers) == Counter(range(CANDIDATES)), "drawn once, and not again"
    assert first.draw(1).id == first.set_id(1) and len(first._drawer.numbers) == CANDIDATES
    again = ChosenSets(Drawn(tmp_path), lowest, "2" * 64)
    assert [again.set_id(n) for n in range(4)] == [first.set_id(n) for n in range(4)]
    assert again._drawer.numbers == [], "what is answered need not be drawn"
    assert again.draw(2) == first.draw(2) and again._drawer.numbers == [14]
    assert [number_of(again.draw(n)) for n in range(4, 8)] == [16, 17, 18, 19], "the new model goes on"


def test_of_two_that_choose_at_once_the_first_counts(tmp_path):
    one, two = ChosenSets(Drawn(tmp_path), highest, "1" * 64), ChosenSets(Drawn(tmp_path), lowest, "2" * 64)
    two._recorded = lambda group, real=two._recorded, calls=[]: (
        calls.append(0) or (None if len(calls) == 1 and one.set_id(0) else real(group))
    )
    assert [two.set_id(n) for n in range(4)] == [one.set_id(n) for n in range(4)]


def test_a_wrong_order_is_told(tmp_path):
    with pytest.raises(ValueError, match="it must hold each place once"):
        ChosenSets(Drawn(tmp_path), lambda sets: [0, 0, 1], "1" * 64).set_id(0)
    with pytest.raises(ValueError, match="must hold 4 of 16"):
        Choice("a", (0, 1, 2, 16), "b")


def test_the_page_shows_what_is_chosen(tmp_path):
    with desk_of(ChosenSets(Drawn(tmp_path), highest, "1" * 64)) as desk:
        shown = [int(showing["set_id"], 16) for showing in full(desk, "Ann")["queue"]]
    assert shown == [0, 15, 14, 13][: len(shown)] and len(shown) > 2


def test_a_model_is_asked_about_the_chosen_sets(tiny_run, cli, tmp_path):
    run, world = tmp_path / "run", World()
    shutil.copytree(tiny_run.run_dir, run)
    clip = load_clip(str(world.clip), None)
    file = random_model(tmp_path / "rm.safetensors", clip, clip.embed_texts(["a"]).shape[1])
    with FakeEndpoint() as server:
        arguments = [run, "--by", server.url, "--model", "judge", "--sets", "5", "--device", "cpu"]
        arguments += ["--choose", "disagreement", "--reward_model", file]
        outcomes = [cli(label.main, *arguments) for _ in "ab"]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    assert len(server.requests) == 10, "twice about each set, and nothing again"
    store = Store(run / "preferences")
    assert len(store.images()) >= 2 * CANDIDATES
    choose = Disagreement(load_head(file, clip), store, clip)
    asked: dict[str, Answer] = {a.set_id: a for a in store.answers()}
    told = choose.told([PictureSet(name, a.caption, a.images) for name, a in asked.items()])
    assert told[1] >= told[2] >= told[3] > 0 and len(told) == 5


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--choose", "disagreement"], "--choose disagreement and --reward_model belong together"),
        (["--reward_model", "rm.safetensors"], "--choose disagreement and --reward_model belong together"),
        (
            ["--choose", "disagreement", "--reward_model", "no.safetensors"],
            "no.safetensors, which is not a file",
        ),
        (["--choose", "best"], "--choose"),
    ],
)
def test_mistakes_cost_one_line(tmp_path, cli, arguments, line):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    outcome = cli(label.main, tmp_path, *arguments)
    assert outcome.code == 2 and line in outcome.error


def test_an_alignment_that_chooses_needs_members(tmp_path, cli):
    outcome = cli(align.main, "--run_dir", tmp_path, "--choose", "disagreement", "--members", "1")
    assert outcome.code == 2 and "--members is 1; --choose disagreement needs at least 2" in outcome.error
