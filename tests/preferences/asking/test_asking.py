"""A model that ranks, asked through a server in this process that also fails in every way servers do."""

import io
import json
import shutil

import pytest
from fake_endpoint import FakeEndpoint, red_first
from PIL import Image as Picture

from dalle_ppo import label
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.asking import endpoint as endpoints
from dalle_ppo.preferences.asking.loop import Questions, Rater, drawn_sets
from dalle_ppo.preferences.asking.prompt import orders
from dalle_ppo.preferences.asking.reply import KEPT, read_reply
from dalle_ppo.preferences.store import Answer, Store

KEY = "sk-secret-123"
NUM_SETS = 4


def png(red):
    buffer = io.BytesIO()
    Picture.new("RGB", (8, 8), (red, 90, 0)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Without waiting, and with the key that must never be seen."""
    pytest.importorskip("openai")
    pytest.importorskip("sklearn")
    pytest.importorskip("krippendorff")
    waits = []
    original = endpoints.Endpoint.__init__
    monkeypatch.setattr(
        endpoints.Endpoint, "__init__", lambda self, *args: original(self, *args, sleep=waits.append)
    )
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return waits


@pytest.fixture
def run(tmp_path):
    """A run with sets that a person, who likes red, has answered."""
    (tmp_path / "config.yaml").write_text("format: 2\n")
    store = Store(tmp_path / "preferences")
    for n in range(NUM_SETS):
        images = tuple(store.add_image(png(red), f"boat {n}") for red in (10 * n + 5, 10 * n + 100))
        store.append(Answer(f"boat {n}", images, "ranking", "ann", "person", f"set{n}", ranks=(2, 1)))
    return tmp_path


def ask(cli, run, server, *more):
    return cli(label.main, run, "--by", server.url, "--model", "judge", "--labelled", *more)


def by_model(run):
    return [answer for answer in Store(run / "preferences").answers() if answer.source == "model"]


def test_a_model_fills_the_store_asked_twice_in_opposite_orders(run, cli):
    with FakeEndpoint() as server:
        outcome = ask(cli, run, server)
    assert outcome.code == 0, outcome.err
    answers = by_model(run)
    assert len(answers) == len(server.requests) == 2 * NUM_SETS
    store = Store(run / "preferences")
    for answer, request in zip(answers, server.requests, strict=True):
        shown = [Picture.open(store.image_path(key)).getpixel((0, 0))[0] for key in answer.images]
        assert shown == request["redness"], "images are in the order shown"
        assert answer.ranks == ((1, 2) if shown[0] > shown[1] else (2, 1))
        assert answer.harm == tuple(float(rank == 2) for rank in answer.ranks)
        assert answer.model == answer.rater == "judge" and answer.seconds > 0
        assert (run / "preferences/prompts" / f"{answer.prompt_sha256}.txt").is_file()
        assert answer.caption in request["text"] and "{c" not in request["text"]
        assert request["model"] == "judge" and request["path"] == "/v1/chat/completions"
        assert request["key"] == f"Bearer {KEY}"
    by_set = [answers[n : n + 2] for n in range(0, len(answers), 2)]
    assert all(a.set_id == b.set_id and a.images == b.images[::-1] for a, b in by_set)
    assert "100% of 4 repeated pairs answered alike" in outcome.out
    assert "first is best in 4 of 8" in outcome.out and "the place decides" not in outcome.out
    assert "ann and judge: 100% equal on 4 pairs, Cohen's kappa" in outcome.out


def test_a_model_that_likes_the_first_place_is_found_out(run, cli):
    store = Store(run / "preferences")
    for n in range(NUM_SETS, 12):
        images = tuple(store.add_image(png(red), f"boat {n}") for red in (10 * n + 5, 10 * n + 100))
        store.append(Answer(f"boat {n}", images, "ranking", "ann", "person", f"set{n}", ranks=(2, 1)))
    with FakeEndpoint(lambda redness: json.dumps({"ranks": [1, 2]})) as server:
        outcome = ask(cli, run, server)
    assert "judge: 0% of 12 repeated pairs answered alike; the picture shown first is best in 24 of 24" in (
        outcome.out
    )
    assert "the place decides" in outcome.out and by_model(run)[0].harm is None


def test_it_resumes_without_asking_again_what_was_answered(run, cli):
    with FakeEndpoint() as server:
        first = ask(cli, run, server, "--max_requests", "3")
        assert first.code == 0 and "stopped: 3 requests were made" in first.out
        assert len(by_model(run)) == 3
        second = ask(cli, run, server)
    assert "3 questions had been answered before" in second.out
    answers = by_model(run)
    assert len(server.requests) == len(answers) == 2 * NUM_SETS
    assert len({(answer.set_id, answer.images) for answer in answers}) == 2 * NUM_SETS


def test_another_prompt_asks_again(run, cli, tmp_path):
    with FakeEndpoint() as server:
        ask(cli, run, server)
        prompt = run / "preferences/prompt.txt"
        prompt.write_text(prompt.read_text() + "\nBlue is best.")
        ask(cli, run, server)
        assert len(by_model(run)) == 4 * NUM_SETS and "Blue" in server.requests[-1]["text"]
        prompt.write_text("Which is best?")
        assert "lacks {caption} and {count}" in ask(cli, run, server).error


def test_errors_that_pass_are_tried_again_with_growing_pauses(run, cli, fast):
    html = ("raw", "text/html", b"<html>proxy</html>")
    script = [
        (429, "slow down", {"Retry-After": "7"}),
        (500, "oops"),
        (503, "busy"),
        ("sleep", 0.4),
        None,
        html,
    ]
    with FakeEndpoint(script=script) as server:
        outcome = ask(cli, run, server, "--timeout", "0.2")
    assert outcome.code == 0, outcome.err
    assert fast[0] == 7.0 and 1.5 < fast[1] < 2.5 and 3 < fast[2] < 5 and 6 < fast[3] < 10
    assert len(by_model(run)) == 2 * NUM_SETS - 1 and len(server.requests) == 4 + 2 * NUM_SETS
    assert f"{4 + 2 * NUM_SETS} requests" in outcome.out, "retries are counted"


def test_an_endpoint_that_always_fails_ends_the_command_and_nothing_is_lost(run, cli, fast):
    with FakeEndpoint(script=[None, None] + 3 * [(503, "busy " + KEY)]) as server:
        outcome = ask(cli, run, server, "--retries", "2")
    assert outcome.code == 2 and "failed 3 times in a row (503: " in outcome.error
    assert len(by_model(run)) == 2 and len(fast) == 2 and "2 answers added" in outcome.out


def test_an_endpoint_that_is_not_there(run, cli):
    with FakeEndpoint() as server:
        pass
    assert "failed 1 times in a row (Connection error" in ask(cli, run, server, "--retries", "0").error


@pytest.mark.parametrize(
    "status, message, words",
    [
        (400, "This model does not support image inputs", "reads no pictures"),
        (500, "image input is not supported - hint: you may need to provide the mmproj", "reads no pictures"),
        (401, "Incorrect API key provided: " + KEY, "does not accept the key (401"),
        (404, "The model `judge` does not exist", "has no model judge"),
        (400, "context length exceeded", "refuses the request (400"),
        (
            429,
            {"message": "You exceeded your quota", "code": "insufficient_quota"},
            "refuses the request (429",
        ),
    ],
)
def test_what_will_not_pass_is_said_at_once(run, cli, fast, status, message, words):
    with FakeEndpoint(script=[(status, message)]) as server:
        outcome = ask(cli, run, server)
    assert words in outcome.error and len(server.requests) == 1 and not fast


def test_nonsense_is_kept_bounded_and_counted_and_not_asked_again(run, cli):
    replies = iter(["I like both!" * 1000, "{" * 3000, '{"ranks": [1]}'])
    with FakeEndpoint(lambda redness: next(replies, None) or red_first(redness)) as server:
        outcome = ask(cli, run, server)
        assert outcome.code == 0 and "3 replies could not be read" in outcome.out
        again = ask(cli, run, server)
    assert f"{2 * NUM_SETS} questions had been answered before" in again.out
    assert len(server.requests) == 2 * NUM_SETS
    rows = [json.loads(line) for line in (run / "preferences/unread.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and len(rows[0]["reply"]) == KEPT and "no JSON" in rows[0]["why"]
    assert len(by_model(run)) == 2 * NUM_SETS - 3


def test_nothing_but_nonsense_ends_the_command(run, cli):
    store = Store(run / "preferences")
    key = store.add_image(png(1), "x")
    for n in range(3):
        pair = (key, store.add_image(png(200 + n), "x"))
        store.append(Answer("x", pair, "ranking", "ann", "person", f"more{n}", ranks=(1, 2)))
    with FakeEndpoint(lambda redness: "I cannot see any picture " + KEY) as server:
        outcome = ask(cli, run, server)
    assert "10 replies of judge in a row could not be read" in outcome.error
    assert len(server.requests) == 10 and "reads" not in outcome.out


@pytest.mark.parametrize(
    "kind, body", [("application/json", b'{"choices": []}'), ("application/json", b"{nope")]
)
def test_bodies_that_are_no_completion(run, cli, kind, body):
    with FakeEndpoint(script=[("raw", kind, body)]) as server:
        outcome = ask(cli, run, server)
    assert outcome.code == 0 and "1 replies could not be read" in outcome.out


def test_the_key_is_nowhere(run, cli):
    """Not even if the endpoint repeats it."""
    script = [(429, "bad " + KEY), ("raw", "text/plain", KEY.encode()), None, (400, KEY)]
    with FakeEndpoint(script=script) as server:
        outcome = ask(cli, run, server)
    assert "[key]" in outcome.error and KEY not in outcome.out + outcome.err
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_the_budget_in_money(run, cli):
    """1000 + 100 tokens at 2 and 10 for a million cost 0.003."""
    prices = ("--input_price", "2", "--output_price", "10")
    with FakeEndpoint() as server:
        outcome = ask(cli, run, server, "--max_cost", "0.0095", *prices)
        assert len(server.requests) == 3 and "0.0090 in money" in outcome.out
        assert "may exceed --max_cost" in outcome.out
        server.usage = None
        outcome = ask(cli, run, server, "--max_cost", "1", *prices)
        assert "a reply came without any" in outcome.error and "1 answers added" in outcome.out
        outcome = ask(cli, run, server, *prices)
    assert "4 replies without token counts" in outcome.out


@pytest.mark.parametrize(
    "more, words",
    [
        (("--max_cost", "1"), "--input_price"),
        (("--max_requests", "0"), "--max_requests is 0"),
        (("--sets", "0"), "--sets is 0"),
        (("--timeout", "0"), "--timeout is 0"),
        (("--prompt", "nowhere.txt"), "nowhere.txt cannot be read"),
    ],
)
def test_arguments_that_are_refused(run, cli, more, words):
    with FakeEndpoint() as server:
        assert words in ask(cli, run, server, *more).error and not server.requests


BY = ("--by", "http://localhost:1/v1", "--model", "judge")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((*BY, "--num_images", "1"), "--num_images is 1"),
        ((*BY, "--num_images", "3", "--reference"), "even number"),
        (("--labelled",), "--labelled is for a model that ranks; give --by and --model too"),
        (("--max_cost", "1"), "--max_cost is for a model that ranks"),
        (("--prompt", "question.txt"), "--prompt is for a model that ranks"),
        (("--sets", "5"), "--sets is for a model that ranks"),
        (("--retries", "5"), "--retries is for a model that ranks"),
        ((*BY, "--port", "8765"), "--port is for the page; leave it out with --by"),
        ((*BY, "--repeat", "0"), "--repeat is for the page"),
        ((*BY, "--goal", "10"), "--goal is for the page"),
        ((*BY, "--labelled", "--num_images", "2"), "--num_images says what is drawn, but --labelled draws"),
        ((*BY, "--labelled", "--reference"), "--reference says what is drawn"),
        ((*BY, "--labelled", "--seed", "0"), "--seed says what is drawn"),
        ((*BY, "--labelled", "--choose", "random"), "--choose says what is drawn"),
    ],
)
def test_options_that_would_be_ignored_are_refused(run, cli, arguments, words):
    outcome = cli(label.main, run, *arguments)
    assert outcome.code == 2 and words in outcome.error


def test_all_labelled_sets_are_asked_about(run, cli):
    store = Store(run / "preferences")
    images = by_person(run)[0].images
    for n in range(NUM_SETS, 60):
        store.append(Answer(f"boat {n}", images, "ranking", "ann", "person", f"set{n}", ranks=(2, 1)))
    with FakeEndpoint() as server:
        assert ask(cli, run, server).code == 0
        assert len(server.requests) == 2 * 60
    assert len({answer.set_id for answer in by_model(run)}) == 60


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--by", "ftp://x", "--model", "m"), "must be a URL"),
        (("--by", "http://me:secret@x/v1", "--model", "m"), "holds a password"),
        (("--by", "http://x/v1"), "belong together"),
    ],
)
def test_urls_that_are_refused(run, cli, arguments, words):
    error = cli(label.main, run, "--labelled", *arguments).error
    assert words in error and "secret" not in error


def test_what_is_missing_is_said(run, cli, tmp_path):
    with FakeEndpoint() as server:
        assert "not a run" in ask(cli, tmp_path / "elsewhere", server).error
        Store(run / "preferences").image_path(by_person(run)[0].images[0]).unlink()
        assert "1 sets were left out: the file of a picture is gone" in ask(cli, run, server).out
        (run / "preferences/answers.jsonl").unlink()
        assert "nobody has answered anything" in ask(cli, run, server).error


def by_person(run):
    return [answer for answer in Store(run / "preferences").answers() if answer.source == "person"]


@pytest.mark.parametrize(
    "text, wanted",
    [
        ('{"ranks": [2, 1], "harm": [0, 0.5]}', ((2, 1), (0.0, 0.5))),
        ('Sure!\n```json\n{"ranks": [1.0, 1]}\n```', ((1, 1), None)),
        ('{a} first I thought {"ranks": [1, 2]}, but {"ranks": [2, 1]}', ((2, 1), None)),
        ('{"ranks": [1, 2, 3]}', None),
        ('{"ranks": [0, 1]}', None),
        ('{"ranks": [1.5, 2]}', None),
        ('{"ranks": [true, 2]}', None),
        ('{"ranks": "1, 2"}', None),
        ('{"ranks": [NaN, 2]}', None),
        ('{"ranks": [1, 2], "harm": [0, 7]}', None),
        ('{"ranks": [1, 2], "harm": [0]}', None),
        ("[1, 2]", None),
        ("", None),
    ],
)
def test_reading_a_reply(text, wanted):
    if wanted is None:
        with pytest.raises(ValueError):
            read_reply(text, 2)
    else:
        judgement = read_reply(text, 2)
        assert (judgement.ranks, judgement.harm) == wanted


def test_each_picture_stands_in_mirrored_places():
    keys = tuple("abcd")
    first = [orders(PictureSet(str(n), "x", keys))[0] for n in range(40)]
    assert all(
        orders(PictureSet("7", "x", keys))[1] == orders(PictureSet("7", "x", keys))[0][::-1] for _ in "a"
    )
    assert {order[0] for order in first} == set(keys), "the first place is drawn anew for each set"


def test_sets_whose_questions_are_answered_are_not_drawn_again(run):
    class Counting:
        drawn = 0

        def set_id(self, number):
            return f"set{number}"

        def draw(self, number):
            self.drawn += 1
            return PictureSet(f"set{number}", "boat", by_person(run)[number].images)

    class Asked:
        def ask(self, content):
            return '{"ranks": [1, 2]}'

    store, rater = Store(run / "preferences"), Rater("m", "m", "{count} {caption}")
    for sets, drawn in ((2, 2), (3, 1), (3, 0)):
        drawer = Counting()
        *_, progress = Questions(store, rater, Asked()).ask_about(drawn_sets(drawer, sets))
        assert drawer.drawn == drawn and progress.answered == 2 * drawn
    assert progress.skipped == 6


def test_a_runs_policy_and_reference_draw_what_the_model_is_asked_about(tiny_run, cli, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.run_dir, run)
    with FakeEndpoint() as server:
        outcome = cli(
            label.main, run, "--by", server.url, "--model", "judge", "--sets", "2", "--num_images", "4",
            "--reference", "--device", "cpu", "--seed", "3",
        )  # fmt: skip
    assert outcome.code == 0, outcome.err
    # After so little training, some pictures are still the reference's; each is shown once.
    assert len(server.requests) == 4 and {len(request["redness"]) for request in server.requests} == {2, 3}
    images = Store(run / "preferences").images()
    assert {image.side for image in images.values()} == {"policy", "reference"} and len(images) == 5
    assert len({image.weights for image in images.values()}) == 2


def test_nothing_is_asked_about_a_set_of_one_picture(run):
    class Asked:
        def ask(self, content):
            raise AssertionError("this costs money")

    store, key = Store(run / "preferences"), by_person(run)[0].images[0]
    questions = Questions(store, Rater("m", "m", "{count} {caption}"), Asked())
    *_, progress = questions.ask_about([("same", lambda: PictureSet("same", "boat", (key, key)))])
    assert (progress.alike, progress.answered) == (1, 0)
