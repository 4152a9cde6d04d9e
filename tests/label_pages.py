"""A label page without a policy: pictures of plain colours, a drawer that counts, a server in a thread."""

import io
import threading
import time
import uuid
from contextlib import contextmanager

from PIL import Image as Picture

from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.page.ahead import Ahead
from dalle_ppo.preferences.page.command import listen, make_server
from dalle_ppo.preferences.page.desk import Desk
from dalle_ppo.preferences.store import Store

TOKEN, PORT = "secret-token", 8765
HOSTILE = "<img src=x onerror=\"document.title='broken'\"> & <b>bold</b>"


def colour_png(colour: tuple[int, int, int], size: int = 32) -> bytes:
    buffer = io.BytesIO()
    Picture.new("RGB", (size, size), colour).save(buffer, "png")
    return buffer.getvalue()


class ColourDrawer:
    """Draws sets of plain pictures; set 1 has the caption that attacks a page, set 2 a flagged picture."""

    def __init__(self, folder, num_images: int = 2, sets: int = 1000):
        self.store, self.num_images, self.sets = Store(folder), num_images, sets
        self.drawn: list[int] = []
        self.size = 32

    def set_id(self, number):
        return f"{number:016x}"

    def draw(self, number):
        if number >= self.sets:
            raise ValueError(f"set {number}: there are no more captions")
        self.drawn.append(number)
        caption = HOSTILE if number == 1 else f"colour {number}"
        keys = [
            self.store.add_image(
                colour_png((number % 256, number // 256, 60 * place), self.size),
                caption,
                flagged=number == 2 and place == 0,
            )
            for place in range(self.num_images)
        ]
        return PictureSet(self.set_id(number), caption, tuple(keys))


def wait_for(condition, seconds: float = 10.0):
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return value


@contextmanager
def desk_of(drawer, repeat: float = 0.0, goal: int = 20):
    """A desk whose thread draws; waits until a full queue is there."""
    ahead = Ahead(drawer)
    ahead.start()
    try:
        yield Desk(drawer.store, ahead, repeat, goal)
    finally:
        ahead.stop()


def full(desk, rater: str, length: int = 4) -> dict:
    """A rater's state once the queue is full."""
    return wait_for(lambda: (state := desk.state(rater)) and len(state["queue"]) >= length and state)


def body(rater: str, showing: dict, /, **changes) -> dict:
    """What the browser sends for "the first picture is the best, and the others are equal"."""
    ranks = [1] + [2] * (len(showing["images"]) - 1)
    facts = {key: showing[key] for key in ("name", "set_id", "caption", "images")}
    given = {"id": uuid.uuid4().hex, "rater": rater, "kind": "ranking", "ranks": ranks, "seconds": 2.0}
    return {**given, **facts, **changes}


@contextmanager
def page_of(desk, store, port: int = 0, token: str = TOKEN):
    """A running server; gives its address."""
    listener = listen(port)
    server = make_server(desk, store, token, listener.getsockname()[1])
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token={token}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
