"""The term `question` against a fake endpoint: right and wrong answers, prose, letters, errors and keys."""

import base64
import io
import logging
import time

import numpy as np
import pytest
import torch
from fake_service import chat, png_in, question_in, service
from PIL import Image
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.build.rewards import build_reward
from dalle_ppo.build.trial import try_reward
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.rewards import vision
from dalle_ppo.rewards.question import LETTERS, is_right

openai = pytest.importorskip("openai")

# Brightness says how many things an image shows, and whether it shows letters.
IMAGES = torch.tensor([0.0, 0.2, 0.4, 0.6])[:, None, None, None].expand(4, 3, 8, 8)
COUNTING = {
    "pattern": "(?P<number>one|two|three) (?P<noun>[a-z]+)",
    "ask": "How many {noun} are there? Answer with a number.",
    "answer": "{number}",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def reward_at(url, *more, **settings):
    term = {"name": "question", "model": "vlm", "url": f"{url}/v1", **settings}
    return build_reward(Config(reward=RewardConfig([term, *more])), None, torch.device("cpu"))


def failure(url, **settings) -> str:
    with pytest.raises(ValueError) as error:
        reward_at(url, **settings)(IMAGES, ["a"] * 4)
    assert "\n" not in str(error.value) and str(error.value).startswith("reward question: ")
    return str(error.value)


def brightness(content) -> float:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png_in(content))))).mean() / 255


@pytest.mark.parametrize(
    "answer, expected, right",
    [
        ("Yes, it does.", "yes", True),
        ("**No**", "yes", False),
        ("no", "no", True),
        ("The picture is lovely.", "yes", None),
        ("I cannot say yes or no.", "yes", None),
        ("", "yes", None),
        ("3", "three", True),
        ("There are three boats.", "3", True),
        ("four", "3", False),
        ("two or three", "3", None),
        ("one boat, only 1", "1", True),
        ("many", "3", None),
        ("none", "0", True),
        ("12", "2", False),
        ("2.5", "2", False),
        ("3.5", "3.5", True),
        ("About 3.50 m.", "3.5", True),
        ("It is 1,000", "1000", True),
        ("1000", "1,000", True),
        ("1,234,567.5", "1234567.5", True),
        ("12345678901234567891", "12345678901234567890", False),
        ("2, 3", "2", None),
        ("2,5", "2", None),
        ("version 3.5 of it", "version 3.5", True),
        ("anything", "", False),
        ("anything", " ?", False),
        ("A red boat!", "Red", True),
        ("a reddish boat", "red", False),
        ("a sailing boat at sea", "sailing boat", True),
    ],
)
def test_answers_are_read(answer, expected, right):
    assert is_right(answer, expected) is right


def test_counting_with_the_number_in_the_caption():
    words = {0: "zero", 1: "1", 2: "There are two.", 3: "three or four"}

    def answer(content, number):
        if question_in(content) == LETTERS:
            return chat("Yes" if brightness(content) > 0.3 else "No.")
        return chat(words[round(brightness(content) * 5)])

    captions = ["two boats", "one dog at the sea", "two cats", "three boats"]
    with service(answer) as server:
        result = reward_at(server.url, max_unreadable=0.5, **COUNTING)(IMAGES, captions)
    assert result.total.tolist() == [0, 1, 1, 0]  # the last answer cannot be read
    assert result.parts["letters"].tolist() == [0, 0, 1, 1]
    asked = sorted(question_in(content) for content in server.asked)
    assert asked.count("How many boats are there? Answer with a number.") == 2 and len(asked) == 8
    fields = [(c["model"], c["max_tokens"], c["temperature"]) for c in server.asked]
    assert set(fields) == {("vlm", 100, 0)}


def test_a_caption_without_the_pattern_is_not_asked_about():
    with service(lambda *_: chat("2")) as server:
        result = reward_at(server.url, report_letters=False, **COUNTING)(IMAGES[:2], ["two boats", "a boat"])
    assert result.total.tolist() == [1, 0] and len(server.asked) == 1 and "letters" not in result.parts


def test_a_caption_without_the_answers_group_is_not_asked_about():
    """Else the right answer would be empty, and any reply right."""
    counting = COUNTING | {"pattern": "(?P<number>two)? ?(?P<noun>boats?)"}
    with service(lambda *_: chat("2")) as server:
        result = reward_at(server.url, report_letters=False, **counting)(IMAGES[:2], ["two boats", "a boat"])
    assert result.total.tolist() == [1, 0] and len(server.asked) == 1


def test_an_answer_without_a_word_is_refused():
    with pytest.raises(ValueError, match=r"answer of question is '\?'; give yes, no, a number or a word"):
        reward_at("http://localhost:1", answer="?")


def test_a_gate_on_letters_gives_nothing_for_writing():
    with service(lambda content, number: chat("yes" if brightness(content) > 0.3 else "no")) as server:
        result = reward_at(server.url, answer=True, only_if="letters < 0.5")(IMAGES, ["a"] * 4)
        assert result.parts["question"].tolist() == [0, 0, 1, 1] and result.total.tolist() == [0] * 4
    assert "Does this image show a? Answer yes or no." in {question_in(content) for content in server.asked}


def test_prose_is_named_before_training():
    with service(lambda *_: chat("What a\nlovely picture!")) as server:
        message = failure(server.url, max_unreadable=0.9)
        assert "4 of 4 answers of vlm cannot be read, such as 'What a lovely picture!'" in message
        term = {"name": "question", "model": "vlm", "url": server.url}
        trainer = tiny_trainer(changed(TINY_CONFIG, {"reward.terms": [term]}))
        with pytest.raises(ValueError, match=r"2 of 2 answers of vlm cannot be read.* before training"):
            try_reward(trainer)
    with service(lambda *_: chat("Pretty.")) as server:
        result = reward_at(server.url, max_unreadable=1)(IMAGES, ["a"] * 4)
    assert result.total.tolist() == [0] * 4


def test_an_endpoint_that_is_busy_slow_or_down():
    busy = (429, {"error": {"message": "slow down"}}, {"Retry-After-Ms": "1"})
    with service(lambda content, number: busy if number < 2 else chat("yes")) as server:
        assert reward_at(server.url, parallel=1)(IMAGES, ["a"] * 4).total.tolist() == [1] * 4
        assert len(server.asked) == 10
    with service(lambda *_: busy) as server:
        assert (
            "asked 3 times: " in (message := failure(server.url, retries=2, parallel=1)) and "429" in message
        )
        assert len(server.asked) == 3
    down = failure(server.url, retries=1)
    assert "asked 2 times: " in down and "is the server running?" in down and "refused" in down
    with service(lambda *_: time.sleep(0.5) or chat("yes")) as server:
        message = failure(server.url, timeout=0.1, retries=1, parallel=8)
        assert "asked 2 times: no answer within 0.1 s" in message


@pytest.mark.parametrize("answer", ["Hello!", {"choices": []}, {"scores": [1]}, [], "{broken"])
def test_what_is_no_chat_endpoint_is_named(answer):
    with service(lambda *_: answer) as server:
        assert "did not answer as an OpenAI-compatible endpoint does" in failure(server.url, retries=0)


def test_the_key_is_sent_and_neither_logged_nor_repeated(monkeypatch, caplog, capfd):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    said = (401, {"error": {"message": "Incorrect API key: sk-very-secret"}}, {})
    with service(lambda *_: said) as server, caplog.at_level(logging.DEBUG):
        message = failure(server.url, api_key_env="MY_KEY")
        assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "Incorrect API key: ***" in message and message.endswith("set MY_KEY to the endpoint's key")
    assert "secret" not in message + caplog.text + "".join(capfd.readouterr())


def test_an_answer_that_repeats_the_key_does_not_show_it(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with service(lambda *_: chat("Your key is sk-very-secret.")) as server:
        message = failure(server.url, api_key_env="MY_KEY")
    assert "such as 'Your key is ***.'" in message and "secret" not in message


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(vision, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"question needs the package openai.*pip install -e '\.\[vlm\]'"):
        reward_at("http://localhost:1")
