"""Gates and weighted sum against a loop written by hand; what one term does to its inputs no other sees."""

import operator

import numpy as np
import pytest
import torch

from dalle_ppo.config.reward import RewardConfig, default_terms
from dalle_ppo.config.term import read_terms
from dalle_ppo.rewards.base import RewardResult, Term
from dalle_ppo.rewards.combine import CombinedReward
from dalle_ppo.rewards.gates import parse_gate

IMAGES, CAPTIONS = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), ["a", "b", "c"]
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def fixed(values, name=None):
    """A term that returns these values, as a part if it has a name."""

    def function(images, captions):
        total = torch.tensor(values)
        return RewardResult(total, {name: total} if name else {})

    return function


def test_the_sum_is_that_of_a_loop_over_images_and_terms():
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 0.0, 0.25, 0.5], size=(4, 200)).astype(np.float32)
    weights = [1.0, -2.5, 20.0, 0.5]
    gates = [None, ("p0", "<=", 0.0), ("p3", ">", 0.25), ("p1", ">=", 0.25)]
    terms = [
        Term(
            f"t{i}",
            fixed(values[i], f"p{i}"),
            (f"p{i}",),
            weights[i],
            gate and parse_gate(" ".join(map(str, gate))),
        )
        for i, gate in enumerate(gates)
    ]
    images = torch.zeros(200, 3, 1, 1)
    found = CombinedReward(terms)(images, ["x"] * 200).total
    for image in range(200):
        expected = 0.0
        for i, gate in enumerate(gates):
            if gate is None or COMPARE[gate[1]](values[int(gate[0][1]), image], gate[2]):
                expected += weights[i] * values[i, image]
        assert found[image].item() == pytest.approx(expected, abs=1e-5)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("text", ["nsfw <= 0.1", "nsfw<=0.1", " nsfw  <=1e-1 "])
def test_gates_are_read_with_or_without_blanks(text):
    gate = parse_gate(text)
    assert (gate.part, gate.comparison, gate.bound) == ("nsfw", "<=", 0.1)


def test_a_gate_at_its_bound():
    values = torch.tensor([0.0, 0.5, 1.0])
    for comparison, expected in {"<": [1, 0, 0], "<=": [1, 1, 0], ">": [0, 0, 1], ">=": [0, 1, 1]}.items():
        assert parse_gate(f"p {comparison} 0.5").is_open(values).int().tolist() == expected


def test_a_closed_gate_lets_nothing_through_whatever_the_weight():
    detector = Term("d", fixed([0.0, 1.0, 1.0], "p"), ("p",), 0.0)
    paid = Term("paid", fixed([3e38, 3e38, -3e38]), (), 0.5, parse_gate("p < 0.5"))
    assert CombinedReward([detector, paid])(IMAGES, CAPTIONS).total.tolist() == pytest.approx([1.5e38, 0, 0])


def test_a_gate_on_a_term_compares_its_first_part():
    gates = [term.gate for term in read_terms(default_terms())]
    assert gates[0] is None and (gates[1].part, gates[1].comparison, gates[1].bound) == (
        "nsfw_probability",
        "<=",
        0.1,
    )
    own = read_terms([{"name": "m:f"}, {"name": "m:g", "only_if": "m:f > 2"}, {"name": "m:f"}])
    assert own[1].gate.part == "m:f" and own[2].parts == ("m:f#2",)


def test_terms_get_images_captions_and_metadata_of_their_own():
    def blackout(images, captions, metadata):
        images.zero_()
        captions.clear()
        for known in metadata:
            known.clear()
        return torch.zeros(3)

    def look(images, captions, metadata):
        return images.mean(dim=(1, 2, 3)) + sum(
            len(c) + len(known) for c, known in zip(captions, metadata, strict=True)
        )

    before, known = IMAGES.clone(), [{"tag": "NSFW", "id": str(i)} for i in range(3)]
    terms = [Term("black", blackout), Term("look", look), Term("look#2", look)]
    result = CombinedReward(terms)(IMAGES, CAPTIONS, known)
    assert (
        torch.equal(IMAGES, before) and CAPTIONS == ["a", "b", "c"] and known[0] == {"tag": "NSFW", "id": "0"}
    )
    expected = IMAGES.mean(dim=(1, 2, 3)) + 9
    assert torch.equal(result.parts["look"], expected) and torch.equal(result.parts["look#2"], expected)
    assert torch.equal(result.total, 2 * expected)


def test_what_a_term_returns_may_change_afterwards():
    kept = torch.ones(3)

    def counting(images, captions):
        kept.add_(1)
        return kept

    result = CombinedReward([Term("a", counting), Term("b", counting)])(IMAGES, CAPTIONS)
    assert result.parts["a"].tolist() == [2, 2, 2] and result.total.tolist() == [5, 5, 5]


def test_parts_have_names_of_their_own():
    def both(images, captions):
        return RewardResult(torch.ones(3), {"declared": torch.zeros(3), "other": torch.ones(3)})

    terms = [Term("t", both, ("declared",)), Term("t#2", both, ("declared#2",)), Term("m:f", both)]
    parts = CombinedReward(terms)(IMAGES, CAPTIONS).parts
    assert parts.keys() == {
        "declared",
        "t/other",
        "declared#2",
        "t#2/other",
        "m:f",
        "m:f/declared",
        "m:f/other",
    }
    assert parts["m:f"].tolist() == [1, 1, 1]


def test_a_part_that_is_declared_but_missing_is_refused():
    reward = CombinedReward([Term("t", lambda images, captions: torch.ones(3), ("there",))])
    with pytest.raises(ValueError, match="reward t declares the part there, but did not return it"):
        reward(IMAGES, CAPTIONS)


def test_embeddings_are_those_of_the_first_term_that_has_some():
    def embedding(images, captions):
        return RewardResult(torch.ones(3), {}, torch.eye(3))

    terms = [Term("bare", fixed([0.0, 0.0, 0.0])), Term("embeds", embedding)]
    assert torch.equal(CombinedReward(terms)(IMAGES, CAPTIONS).embeddings, torch.eye(3))


def refused(*terms, **more) -> str:
    with pytest.raises(ValueError) as caught:
        RewardConfig(list(terms), **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "terms, words",
    [
        ([], "reward.terms is empty"),
        ([{"weight": 1}], "has no name"),
        (["nsfw"], "has no name"),
        ([{"name": "nsfv"}], "nsfv is neither a known term .*did you mean nsfw?"),
        ([{"name": "zzzz"}], "the terms are .*nsfw"),
        ([{"name": "nsfw", "unsafe_treshold": 1}], "unsafe_treshold; did you mean unsafe_threshold"),
        ([{"name": "clip_similarity", "clip_weight": 1}], "has no setting clip_weight; did you mean weight"),
        ([{"name": "m:f", "call": 1}], "m:f has no setting call; it has name, weight, only_if"),
        ([{"name": "nsfw", "unsafe_threshold": "high"}], "of nsfw is 'high'; it must be of type number"),
        ([{"name": "nsfw", "unsafe_threshold": 0.05}], "thresholds must be ordered.*0.05"),
        ([{"name": "m:f", "weight": float("inf")}], "weight of m:f is inf"),
        ([{"name": "m:f", "weight": "much"}], "weight of m:f is 'much'; it must be of type number"),
        ([{"name": "m:f", "only_if": "nsfw <= 0.1"}], "is 'nsfw <= 0.1', but no term or part is called nsfw"),
        ([{"name": "nsfw"}, {"name": "m:f", "only_if": "nsfv <= 0.1"}], "called nsfv; did you mean nsfw?"),
        ([{"name": "nsfw"}, {"name": "m:f", "only_if": "nsfw = 0.1"}], "of m:f is 'nsfw = 0.1'; write it as"),
        ([{"name": "nsfw"}, {"name": "m:f", "only_if": "nsfw <= low"}], "is 'nsfw <= low'; write it as"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_is_one_line(terms, words):
    import re

    assert re.search(words, refused(*terms))


def test_a_list_is_spelled_out_and_comes_back_the_same():
    config = RewardConfig(
        [{"name": "nsfw"}, {"name": "m:f", "weight": 2, "only_if": "nsfw_probability > 0.5"}]
    )
    assert config.terms[0]["unsafe_penalty"] == -30 and config.terms[1]["weight"] == 2.0
    assert RewardConfig(config.terms) == config
    assert (
        config.settings_of("nsfw").unsafe_threshold == 0.4 and config.settings_of("clip_similarity") is None
    )


def test_a_new_term_is_two_new_files(tmp_path, monkeypatch):
    """One of settings and one that loads; nothing else knows of it."""
    from dalle_ppo import rewards
    from dalle_ppo.build.rewards import build_reward
    from dalle_ppo.config import terms as settings
    from dalle_ppo.config.settings import Config

    for package, text in (
        (
            settings,
            "from dataclasses import dataclass\n"
            "from typing import ClassVar\n"
            "from dalle_ppo.config.term import TermSettings\n"
            "@dataclass(frozen=True)\n"
            "class Settings(TermSettings):\n"
            "    parts: ClassVar = ('darkness',)\n"
            "    floor: float = 0.0\n",
        ),
        (
            rewards,
            "from dalle_ppo.rewards.base import RewardResult\n"
            "def load(options, shared):\n"
            "    def reward(images, captions):\n"
            "        dark = 1 - images.mean(dim=(1, 2, 3))\n"
            "        return RewardResult(dark.where(dark >= options.floor, 0.0), {'darkness': dark})\n"
            "    return reward\n",
        ),
    ):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "dark_of_a_test.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    entry = {"name": "dark_of_a_test", "weight": 2, "floor": 0.5, "only_if": "dark_of_a_test < 0.9"}
    reward = build_reward(Config(reward=RewardConfig([entry])), None, torch.device("cpu"))
    images = torch.tensor([0.0, 0.3, 0.8])[:, None, None, None].expand(3, 3, 2, 2)
    result = reward(images, CAPTIONS)
    torch.testing.assert_close(result.parts["darkness"], torch.tensor([1.0, 0.7, 0.2]))
    torch.testing.assert_close(result.total, torch.tensor([0.0, 1.4, 0.0]))
