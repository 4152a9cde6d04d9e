"""Who sees what next: each set once, repetitions at the stated rate, undo, several raters, a new start."""

from collections import Counter

import pytest
from label_pages import ColourDrawer, body, desk_of, full, wait_for

from dalle_ppo.preferences.answer import Answer, PictureSet
from dalle_ppo.preferences.page import ahead
from dalle_ppo.preferences.page.desk import AHEAD, GAP
from dalle_ppo.preferences.store import Store


def work(desk, rater, number, **changes):
    """Answers so many sets and returns what was shown."""
    shown = []
    for _ in range(number):
        showing = full(desk, rater)["queue"][0]
        desk.answer(body(rater, showing, **changes))
        shown.append(showing)
    return shown


def test_each_set_comes_once_and_the_queue_moves_on(tmp_path):
    drawer = ColourDrawer(tmp_path)
    with desk_of(drawer) as desk:
        before = full(desk, "Ann")["queue"]
        after = desk.answer(body("Ann", before[0]))["queue"]
        assert after[:3] == before[1:], "pictures that a browser has loaded stay next"
        assert full(desk, "Ann")["queue"] == full(desk, "Ann")["queue"], "a reload changes nothing"
        shown = [before[0], *work(desk, "Ann", 11)]
    assert len({showing["set_id"] for showing in shown}) == 12
    assert sorted(drawer.drawn) == list(range(len(drawer.drawn))) and len(drawer.drawn) <= 12 + AHEAD
    rows = Store(tmp_path).answers()
    assert [(row.set_id, row.images, row.ranks) for row in rows] == [
        (showing["set_id"], showing["images"], (1, 2)) for showing in shown
    ]
    assert {(row.rater, row.source, row.kind, row.seconds) for row in rows} == {
        ("Ann", "person", "ranking", 2.0)
    }


@pytest.mark.parametrize("repeat, num_images", [(0.25, 2), (0.5, 4)])
def test_repetitions_come_at_their_rate_in_reverse_order_and_later(tmp_path, repeat, num_images):
    with desk_of(ColourDrawer(tmp_path, num_images), repeat) as desk:
        shown = work(desk, "Ann", 28)
    places = {}
    for place, showing in enumerate(shown):
        places.setdefault(showing["set_id"], []).append(place)
    twice = [found for found in places.values() if len(found) > 1]
    late = GAP + 1  # none can come before
    assert twice and 28 * repeat - late <= len(twice) <= 28 * repeat
    for first, again in twice:
        assert again - first > GAP - 1
        assert shown[again]["images"] == shown[first]["images"][::-1]
        assert shown[again]["name"] != shown[first]["name"]
    assert max(map(len, places.values())) <= 2


def test_agreement_with_oneself_counts_pairs_answered_alike(tmp_path):
    """Whoever always takes the left picture contradicts each repetition of a pair."""
    with desk_of(ColourDrawer(tmp_path), 0.25) as desk:
        work(desk, "left", 30)
        left = desk.state("left")["figures"]
        for _ in range(30):
            showing = full(desk, "same")["queue"][0]
            best = min(showing["images"])
            desk.answer(body("same", showing, ranks=[1 + (key != best) for key in showing["images"]]))
        same = desk.state("same")["figures"]
    assert left["repeats"] >= 5 and left["alike"] == 0 and "30 of 30" in left["warning"]
    assert same["alike"] == same["repeats"] == left["repeats"] and not same["warning"]
    assert (same["mine"], same["total"], same["goal"]) == (30, 60, 20)
    assert same["per_minute"] == pytest.approx(30), "two seconds each"


def test_undo_shows_the_set_again_as_it_was(tmp_path):
    with desk_of(ColourDrawer(tmp_path)) as desk:
        first, second = work(desk, "Ann", 2)
        work(desk, "Bob", 1)
        for expected in (second, first):
            request = {"id": f"{len(expected['name']) + len(desk._ids):032x}", "rater": "Ann"}
            state = desk.undo({**request, "undoes": desk.state("Ann")["last"]})
            again = desk.undo({**request, "undoes": desk.state("Ann")["last"]})
            assert again["queue"] == state["queue"], "a request that was sent twice counts once"
            assert state["queue"][0]["images"] == expected["images"]
            assert state["queue"][0]["set_id"] == expected["set_id"]
        assert state["figures"]["mine"] == 0 and state["last"] is None
        assert Counter(showing["set_id"] for showing in state["queue"])[first["set_id"]] == 1
        assert [row.rater for row in Store(tmp_path).answers()] == ["Bob"]
        (bobs,) = Store(tmp_path).answers()
        before = len(Store(tmp_path).answers(undone=True))
        desk.undo({"id": "f" * 32, "rater": "Ann", "undoes": bobs.id})
        assert len(Store(tmp_path).answers(undone=True)) == before, "nobody takes back what others said"
        assert [showing["set_id"] for showing in work(desk, "Ann", 2)] == [first["set_id"], second["set_id"]]


def test_an_answer_that_is_sent_twice_is_kept_once(tmp_path):
    with desk_of(ColourDrawer(tmp_path)) as desk:
        given = body("Ann", full(desk, "Ann")["queue"][0])
        assert desk.answer(given)["queue"] == desk.answer(given)["queue"]
    with desk_of(ColourDrawer(tmp_path)) as later:
        later.answer(given)
    assert len(Store(tmp_path).answers()) == 1


def test_a_new_start_goes_on_and_draws_nothing_again(tmp_path):
    with desk_of(ColourDrawer(tmp_path)) as desk:
        seen = {showing["set_id"] for showing in work(desk, "Ann", 5)}
        late = body("Ann", full(desk, "Ann")["queue"][0], waited=3600)
    drawer = ColourDrawer(tmp_path)
    with desk_of(drawer) as desk:
        state = desk.answer(late)  # it had waited in the browser while the program was down
        assert state["figures"]["mine"] == 6
        seen |= {late["set_id"]} | {showing["set_id"] for showing in full(desk, "Ann")["queue"]}
        assert len(seen) == 10
        assert not set(drawer.drawn) & set(range(5))
        bobs = {showing["set_id"] for showing in work(desk, "Bob", 5)}
    assert bobs == {f"{number:016x}" for number in range(5)}, "each rater gets the same sets"
    times = [row.time for row in Store(tmp_path).answers()]
    assert times[5] < times[0], "the time is that of the answer, not of its arrival"


def test_raters_see_a_set_in_orders_of_their_own(tmp_path):
    with desk_of(ColourDrawer(tmp_path)) as desk:
        shown = {
            rater: {showing["set_id"]: showing["images"] for showing in work(desk, rater, 8)}
            for rater in ("Ann", "Bob")
        }
    same = [shown["Ann"][name] == images for name, images in shown["Bob"].items()]
    assert len(same) == 8 and 0 < sum(same) < 8
    assert all(sorted(shown["Ann"][name]) == sorted(images) for name, images in shown["Bob"].items())


def test_a_picture_is_shown_once_in_a_set(tmp_path, monkeypatch):
    """Policy and reference may draw the same; a set with one picture alone asks nothing."""

    monkeypatch.setattr(ahead, "SAME", 5)

    class Alike(ColourDrawer):
        def draw(self, number):
            drawn = super().draw(number)
            one, other, third = drawn.images
            images = {0: (one,) * 3, 1: (one, other, one)}.get(number, (one, other, third))
            return PictureSet(drawn.id, drawn.caption, images if number < 9 else (one,) * 3)

    with desk_of(Alike(tmp_path, 3)) as desk:
        shown = work(desk, "Ann", 5)
        assert [int(showing["set_id"], 16) for showing in shown] == [1, 2, 3, 4, 5]
        assert [len(set(showing["images"])) for showing in shown] == [2, 3, 3, 3, 3]
        wait_for(lambda: "5 sets in a row" in desk.state("Ann")["error"])


def test_a_picture_that_is_gone_is_not_shown_and_no_more_pictures_is_said(tmp_path):
    drawer = ColourDrawer(tmp_path, sets=6)
    with desk_of(drawer) as desk:
        lost = full(desk, "Ann")["queue"][3]
        drawer.store.image_path(lost["images"][0]).unlink()
        assert lost["set_id"] not in {showing["set_id"] for showing in full(desk, "Bob")["queue"]}
        for _ in range(6):
            desk.answer(body("Ann", full(desk, "Ann", 1)["queue"][0]))
        state = wait_for(lambda: (state := desk.state("Ann"))["error"] and state)
    assert state["queue"] == [] and state["error"] == "set 6: there are no more captions"


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"rater": "  "}, "a rater's name has 1 to 60 characters"),
        ({"rater": "x" * 61}, "a rater's name has 1 to 60 characters"),
        ({"id": "1"}, "32 hex digits"),
        ({"kind": "undo"}, "kind is 'undo'"),
        ({"ranks": [1]}, "it needs one for each of 2 images"),
        ({"ranks": ["<b>", 2]}, "it must hold numbers"),
        ({"ranks": [0, 1]}, "they count from 1"),
        ({"images": ["../../etc/passwd", "a"]}, "images must be keys"),
        ({"images": ["a" * 64, "b" * 64]}, "pictures that this run does not have"),
        ({"images": None}, "holds no answer"),
        ({"seconds": "soon"}, "could not convert"),
        ({"caption": 3}, "caption must be a text"),
    ],
)
def test_what_is_no_answer_is_refused_in_one_line(tmp_path, changes, line):
    with desk_of(ColourDrawer(tmp_path)) as desk:
        showing = full(desk, "Ann")["queue"][0]
        with pytest.raises(ValueError, match=line) as error:
            desk.answer(body("Ann", showing, **changes))
        assert "\n" not in str(error.value)
        for nothing in (None, [], "x", 3):
            with pytest.raises(ValueError):
                desk.answer(nothing)
        with pytest.raises(ValueError):
            desk.answer(body("Ann", {**showing, "images": [showing["images"][0]] * 2}))
        assert not Store(tmp_path).answers()
        assert desk.state("Ann")["queue"][0] == showing


def test_the_name_of_a_model_is_refused(tmp_path):
    with desk_of(ColourDrawer(tmp_path)) as desk:
        showing = full(desk, "Ann")["queue"][0]
        desk._store.append(
            Answer(showing["caption"], tuple(showing["images"]), "ranking", "gpt", "model", "1", ranks=(1, 2))
        )
        with pytest.raises(ValueError, match="gpt is the name of a model"):
            desk.state("gpt")
