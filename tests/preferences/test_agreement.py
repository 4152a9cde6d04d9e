"""Agreement and habits, against published examples and counts by hand."""

import hashlib

import pytest

from dalle_ppo.preferences import __main__ as command
from dalle_ppo.preferences.agreement import agreement_lines, agreements, alpha, habits, votes
from dalle_ppo.preferences.store import Answer, Store

KEYS = sorted(hashlib.sha256(str(n).encode()).hexdigest() for n in range(200))


@pytest.fixture(autouse=True)
def packages():
    pytest.importorskip("sklearn")
    pytest.importorskip("krippendorff")


def pair(n, label, rater, source="person", swapped=False):
    """An answer to pair n: 1 says that its first picture is better, 0 a tie, -1 the second."""
    keys, ranks = (KEYS[2 * n], KEYS[2 * n + 1]), {1: (1, 2), 0: (1, 1), -1: (2, 1)}[label]
    if swapped:
        keys, ranks = keys[::-1], ranks[::-1]
    return Answer("a boat", keys, "ranking", rater, source, f"set{n}", ranks=ranks)


def both(first, second, **more):
    one = [pair(n, label, "ann") for n, label in enumerate(first)]
    return one + [pair(n, label, "bob", **more) for n, label in enumerate(second)]


def test_cohens_kappa_of_a_published_table():
    """20 both yes, 5 and 10 mixed, 15 both no: 0.4, https://en.wikipedia.org/wiki/Cohen%27s_kappa"""
    first = [1] * 20 + [1] * 5 + [-1] * 10 + [-1] * 15
    second = [1] * 20 + [-1] * 5 + [1] * 10 + [-1] * 15
    (found,) = agreements(votes(both(first, second, swapped=True)))
    assert found.raters == ("ann", "bob") and found.pairs == 50 and found.equal == 0.7
    assert found.kappa == pytest.approx(0.4)


def test_krippendorffs_alpha_of_a_published_table():
    """Two observers, binary: 0.095, Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability"."""
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert alpha(votes(both(first, second))) == pytest.approx(0.095, abs=5e-4)


def test_pairs_that_only_one_has_judged_do_not_count():
    answers = [*both([1, -1, 0], [1, 1, 0]), *[pair(n, 1, "eve") for n in range(10, 20)]]
    (found,) = agreements(votes(answers))
    assert found.pairs == 3 and found.equal == pytest.approx(2 / 3)


def test_where_it_is_undefined_it_says_so():
    """Two raters who always say the same of hash-ordered pairs: chance alone would make them agree."""
    found = votes(both([1, 1, 1], [1, 1, 1]))
    assert agreements(found)[0].kappa is None and alpha(found) is None
    assert "kappa undefined" in " ".join(agreement_lines(both([1, 1, 1], [1, 1, 1])))
    assert alpha(votes([pair(0, 1, "ann"), pair(1, -1, "bob")])) is None


def test_repeats_are_averaged_and_tell_of_consistency():
    answers = [pair(0, 1, "ann"), pair(0, 1, "ann", swapped=True), pair(1, 1, "ann"), pair(1, -1, "ann")]
    assert {label for by in votes(answers).values() for label in by.values()} == {1, 0}
    (habit,) = habits(answers)
    assert habit.repeats == 2 and habit.consistent == 0.5


def test_a_picture_drawn_twice_is_no_repetition():
    a, b = KEYS[:2]
    answer = Answer("a boat", (b, a, a), "ranking", "ann", "model", "set", ranks=(2, 1, 3))
    assert votes([answer]) == {(a, b): {"ann": 1}} and habits([answer])[0].repeats == 0
    assert (a, a) not in {pair[1:] for pair in Store.pairs([answer])}


def test_one_who_always_answers_1_is_found_out():
    """Half of 12 would be first by chance; 12 of 12 have a chance of 2^-11."""
    always = [pair(n, 1 if n % 2 else -1, "lazy", swapped=not n % 2) for n in range(12)]
    fair = [pair(n, 1 if n % 2 else -1, "fair") for n in range(12)]
    found = {habit.rater: habit for habit in habits(always + fair)}
    assert found["lazy"].first == 12 and found["lazy"].expected == 6 and found["lazy"].biased
    assert found["fair"].first == 6 and not found["fair"].biased
    assert sum("the place decides" in line for line in agreement_lines(always + fair)) == 1


def test_people_and_models_are_compared_as_groups():
    answers = [
        *both([1, -1, 1], [1, -1, -1]),
        *[pair(n, label, "gpt", "model") for n, label in enumerate([1, -1, 1])],
    ]
    lines = agreement_lines(answers)
    # people: 1, -1 and a tie of two opinions
    assert any(line.startswith("all models and all people: 67% equal on 3 pairs") for line in lines)


def test_the_report_command(tmp_path, cli):
    store = Store(tmp_path / "preferences")
    store.append_all(both([1, -1, 1, 0], [1, -1, -1, 0]))
    outcome = cli(command.main, "report", tmp_path)
    assert outcome.code == 0 and "answers: 8 ranking" in outcome.out and "ann 4, bob 4" in outcome.out
    assert "ann and bob: 75% equal on 4 pairs" in outcome.out and "contradict" not in outcome.out
    assert (
        "8 pictures whose file is gone" in outcome.out
        and "1 pairs of pictures that were judged both ways" in outcome.out
    )
