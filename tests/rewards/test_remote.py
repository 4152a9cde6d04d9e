"""The term `remote` against servers in this process: good ones, busy ones, slow ones and nonsense."""

import base64
import io
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_service import service
from PIL import Image
from scripts import load_script
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.build.rewards import build_reward
from dalle_ppo.build.trial import try_reward
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.rewards import http_json

IMAGES = torch.rand(5, 3, 6, 4, generator=torch.Generator().manual_seed(0))
CAPTIONS = ["a", "b", "c", "d", "e"]
METADATA = [{"tag": "UNLIKELY", "id": str(i)} for i in range(5)]


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch):
    monkeypatch.setattr(http_json, "FIRST_PAUSE", 0.01)


def reward_at(url, **settings):
    term = {"name": "remote", "url": url, **settings}
    return build_reward(Config(reward=RewardConfig([term])), None, torch.device("cpu"))


def failure(url, **settings) -> str:
    with pytest.raises(ValueError) as error:
        reward_at(url, **settings)(IMAGES, CAPTIONS, METADATA)
    assert "\n" not in str(error.value) and str(error.value).startswith("reward remote: http://127.0.0.1:")
    return str(error.value)


def zeros(content, number):
    return {"scores": [0.0] * len(content["images"])}


def decoded(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_images_captions_and_metadata_arrive_and_scores_keep_their_order():
    def answer(content, number):
        time.sleep(0.05 if number == 0 else 0)  # the first request is answered last
        return {
            "scores": [float(ord(caption)) for caption in content["captions"]],
            "parts": {"number": [int(known["id"]) for known in content["metadata"]]},
        }

    with service(answer) as server:
        result = reward_at(server.url, images_per_request=2, parallel=3)(IMAGES, CAPTIONS, METADATA)
    assert result.total.tolist() == [97, 98, 99, 100, 101]
    assert result.parts["remote"].tolist() == [97, 98, 99, 100, 101]
    assert result.parts["remote/number"].tolist() == [0, 1, 2, 3, 4]
    assert sorted(len(content["images"]) for content in server.asked) == [1, 2, 2]
    pixels = {
        c: p for content in server.asked for c, p in zip(content["captions"], content["images"], strict=True)
    }
    for i, caption in enumerate(CAPTIONS):
        expected = np.rint(IMAGES[i].permute(1, 2, 0).numpy() * 255)
        assert np.array_equal(decoded(pixels[caption]), expected)
    assert not any("Authorization" in headers for headers in server.headers)


def test_requests_run_side_by_side_but_no_more_than_asked_for():
    lock, running, most = threading.Lock(), [0], [0]

    def answer(content, number):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1
        return zeros(content, number)

    with service(answer) as server:
        reward_at(server.url, images_per_request=1, parallel=2)(IMAGES, CAPTIONS, METADATA)
    assert most[0] == 2


def test_a_busy_server_is_asked_again():
    def answer(content, number):
        if number < 3:
            return (429, 503, 500)[number], "busy", {"Retry-After": "0"} if number == 0 else {}
        return zeros(content, number)

    with service(answer) as server:
        assert reward_at(server.url, retries=3)(IMAGES, CAPTIONS, METADATA).total.tolist() == [0] * 5
        assert len(server.asked) == 4
    with service(lambda *_: (503, "busy all day", {})) as server:
        message = failure(server.url, retries=2)
        assert "asked 3 times: 503 busy all day" in message and len(server.asked) == 3


def test_the_pauses_double_and_the_server_may_set_them(monkeypatch):
    slept = []
    monkeypatch.setattr(http_json.time, "sleep", slept.append)
    monkeypatch.setattr(http_json, "FIRST_PAUSE", 0.5)
    headers = {2: {"Retry-After": "7"}, 3: {"Retry-After": "100000"}, 4: {"Retry-After": "tomorrow"}}
    with service(lambda content, number: (429, "", headers.get(number, {}))) as server:
        failure(server.url, retries=5, parallel=1)
    assert slept == [0.5, 1, 7, 60, 8]


@contextmanager
def raw_service(*answers: bytes):
    """Sends these bytes as they are, one after the other, and leaves the connections open."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as opened:

        def serve():
            for answer in answers:
                connection = opened.enter_context(listener.accept()[0])
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 20\r\n\r\nwait"
DONE = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"scores": [3]}'


@pytest.mark.parametrize("cut_off", [True, False], ids=["breaks off", "is slow"])
def test_a_busy_server_is_asked_again_though_its_text_does_not_come(cut_off):
    if cut_off:
        busy, many = (503, "wait", {"Content-Length": "20"}), IMAGES[:1]
        with service(lambda content, number: busy if number == 0 else zeros(content, 1)) as server:
            assert reward_at(server.url)(many, ["a"], METADATA[:1]).total.tolist() == [0]
        return
    with raw_service(BUSY, DONE) as url:
        result = reward_at(url, timeout=0.2)(IMAGES[:1], ["a"], METADATA[:1])
    assert result.total.tolist() == [3]


def test_the_pauses_add_up_to_what_the_settings_say(monkeypatch):
    slept = []
    monkeypatch.setattr(http_json.time, "sleep", slept.append)
    monkeypatch.setattr(http_json, "FIRST_PAUSE", 0.5)
    with service(lambda *_: (503, "", {})) as server:
        failure(server.url, retries=9, parallel=1)
    assert [sum(slept[:n]) for n in (4, 7, 8, 9)] == [7.5, 63.5, 123.5, 183.5]


def test_a_slow_server_is_named_with_the_time():
    done = threading.Event()
    with service(lambda *_: done.wait(5) and {}) as server:
        started = time.perf_counter()
        message = failure(server.url, timeout=0.1, retries=1)
        assert "no answer within 0.1 s; raise the term's timeout" in message
        assert time.perf_counter() - started < 2 and len(server.asked) == 2
        done.set()


def test_a_server_that_is_down_is_named():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    message = failure(f"http://127.0.0.1:{port}/score", retries=1)
    assert "asked 2 times" in message and "refused" in message and "is the server running?" in message


@pytest.mark.parametrize(
    "answer, words",
    [
        ("I like this picture.", "'I like this picture.', which is no JSON"),
        ([0, 0, 0, 0, 0], "it must be .*scores"),
        ({"score": [0] * 5}, "it must be .*scores"),
        ({"scores": [0] * 4}, "answered 4 numbers as scores; it must be a list of 5 numbers"),
        ({"scores": 1.0}, "answered 1.0 as scores; it must be a list of 5"),
        ({"scores": [0, 0, None, 0, 0]}, "each must be a number"),
        ({"scores": [0] * 5, "parts": {"x": ["a"] * 5}}, "as x; each must be a number"),
        ({"scores": [0] * 5, "parts": [1]}, "it must be .*scores"),
        ((404, "no such page", {}), "answered 404 no such page"),
        ((302, "", {"Location": "http://127.0.0.1:9/"}), "answered 302"),
    ],
)
def test_nonsense_is_one_line_and_not_asked_for_twice(answer, words):
    with service(lambda *_: answer) as server, pytest.raises(ValueError, match=words) as error:
        reward_at(server.url)(IMAGES, CAPTIONS, METADATA)
    assert "\n" not in str(error.value) and len(server.asked) == 1


def test_a_number_that_is_not_finite_is_refused():
    with (
        service(lambda *_: '{"scores": [0, 0, NaN, 0, 0]}') as server,
        pytest.raises(ValueError, match="reward remote returned total with 1 of 5 values not finite"),
    ):
        reward_at(server.url)(IMAGES, CAPTIONS, METADATA)


def test_the_key_comes_from_the_environment_and_is_never_repeated(monkeypatch):
    monkeypatch.setenv("MY_KEY", "very-secret")

    def answer(content, number):
        return 401, "wrong key: very-secret", {}

    with service(answer) as server:
        message = failure(server.url, api_key_env="MY_KEY")
        assert server.headers[0]["Authorization"] == "Bearer very-secret"
    assert "401 wrong key: ***" in message and "secret" not in message
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ValueError, match="api_key_env of remote is MY_KEY, which is not set"):
        reward_at(server.url, api_key_env="MY_KEY")


KEY = 'very-"secret"\\x'


@pytest.mark.parametrize(
    "answer",
    [
        lambda seen: seen,
        lambda seen: [seen],
        lambda seen: str(seen),
        lambda seen: (401, seen, {}),
        lambda seen: {"scores": seen},
        lambda seen: {"scores": [0, 0, 0, 0, seen["Authorization"]]},
        lambda seen: {"scores": [0] * 5, "parts": {seen["Authorization"]: [1]}},
        lambda seen: {"scores": [0] * 5, "parts": {seen["Authorization"]: [None] * 5}},
        lambda seen: {"scores": [0] * 5, "parts": seen},
    ],
)
def test_a_server_that_repeats_what_it_got_does_not_show_the_key(monkeypatch, answer):
    monkeypatch.setenv("MY_KEY", KEY)
    seen = {"Authorization": f"Bearer {KEY}"}
    with service(lambda *_: answer(seen)) as server:
        message = failure(server.url, api_key_env="MY_KEY")
        assert server.headers[0]["Authorization"] == seen["Authorization"]
    assert "Bearer ***" in message and "secret" not in message


def test_a_part_is_not_named_after_the_key(monkeypatch):
    """Names of parts are written to a run's metrics."""
    monkeypatch.setenv("MY_KEY", "very-secret")
    parts = [{"Bearer very-secret": [1] * 3}, {"very-secret other": [1] * 2}]
    with service(lambda *_: {"scores": [0] * 5, "parts": {"for very-secret": [1] * 5}}) as server:
        result = reward_at(server.url, api_key_env="MY_KEY")(IMAGES, CAPTIONS, METADATA)
    assert [*result.parts] == ["remote", "remote/for ***"]
    with service(lambda content, number: {"scores": [0] * (3 - number), "parts": parts[number]}) as server:
        message = failure(server.url, api_key_env="MY_KEY", images_per_request=3, parallel=1)
    assert "other parts in one answer" in message and "secret" not in message


def test_a_server_that_is_down_is_found_before_training():
    term = {"name": "remote", "url": "http://127.0.0.1:9/", "retries": 0}
    trainer = tiny_trainer(changed(TINY_CONFIG, {"reward.terms": [term]}))
    with pytest.raises(ValueError, match=r"^reward remote: http://127.0.0.1:9/.* before training$"):
        try_reward(trainer)
    trainer = tiny_trainer(changed(TINY_CONFIG, {"reward.terms": [term], "reward.bad_result": "skip"}))
    with pytest.warns(UserWarning, match="reward remote: http://127.0.0.1:9/"):
        try_reward(trainer)


def test_the_example_server_of_the_docs():
    example = load_script(Path(__file__).parents[2] / "docs" / "reward_server.py")
    server = example.ThreadingHTTPServer(("127.0.0.1", 0), example.Handler)
    example.Handler.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        images = torch.zeros(2, 3, 4, 6)
        images[0, 0], images[1, 2] = 1, 1
        result = reward_at(f"http://127.0.0.1:{server.server_address[1]}")(images, ["a", "b"], METADATA[:2])
    finally:
        server.shutdown()
        server.server_close()
    assert result.total.tolist() == [1, -0.5] and result.parts["remote/width"].tolist() == [6, 6]
