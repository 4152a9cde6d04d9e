"""Sets of pictures: the same again, other noise each time, the facts that are kept."""

import io
from collections import Counter

import numpy as np
import torch
from PIL import Image as Picture

from dalle_ppo.captions.streams import CaptionRecord
from dalle_ppo.captions.text import caption_id
from dalle_ppo.models.family import Drawing
from dalle_ppo.preferences.drawing import Drawer, DrawOptions, Side
from dalle_ppo.preferences.store import Store
from dalle_ppo.rl.noise import noise_keys

CAPTIONS = [CaptionRecord(text, "UNTAGGED", caption_id(text)) for text in ("a boat", "a tree", "a boat")]


class KeyFamily:
    """Draws two pixels that show the noise key of an image and whose it is."""

    device = torch.device("cpu")

    def read(self, captions):
        return captions, 0

    def plan(self, policy, num_images, memory_gb):
        return None

    def draw(self, weights, prompts, keys, plan):
        bytes_of = torch.from_numpy(keys.numpy().view(np.uint8)[:, :6].copy())
        images = bytes_of.reshape(-1, 3, 1, 2) // 2 + (128 if weights == "reference" else 0)
        return Drawing(torch.zeros(len(keys), 1), torch.zeros(len(keys), 1), images)


def drawer(folder, reference=False, seed=0):
    captions = iter(CAPTIONS)
    sides = [Side(name, name, name + "-hash", 2) for name in ("policy", "reference")[: 1 + reference]]
    return Drawer(
        KeyFamily(),
        sides,
        lambda n: [next(captions) for _ in range(n)],
        Store(folder),
        DrawOptions(seed, 7),
        lambda images, caption: [True, False],
    )


def test_a_set_is_the_same_again_in_whatever_order(tmp_path):
    forwards, backwards = drawer(tmp_path / "a"), drawer(tmp_path / "b")
    first = [forwards.draw(n) for n in range(3)]
    assert [backwards.draw(n) for n in (2, 1, 0)] == first[::-1]
    assert first == [forwards.draw(n) for n in range(3)], "nothing is consumed"
    assert len({picture_set.id for picture_set in first}) == 3
    assert first[0].caption == first[2].caption and not set(first[0].images) & set(first[2].images)
    assert drawer(tmp_path / "d").draw_many([0, 2, 1]) == [first[0], first[2], first[1]], "at once"
    assert drawer(tmp_path / "c", seed=1).draw(0).images != first[0].images


def test_pictures_come_from_the_noise_that_the_store_names(tmp_path):
    """The oracle is the noise itself: the pixels are its key."""
    draw = drawer(tmp_path, reference=True)
    shown = [draw.draw(n) for n in range(3)]
    images = draw.store.images()
    for picture_set in shown:
        for key in picture_set.images:
            fact = images[key]
            noise = fact.noise
            assert noise["stream"] == "labels" and noise["iteration"] == 7 and noise["seed"] == 0
            wanted = noise_keys(0, "labels", 7, [noise["caption_id"]], [noise["sample"]])
            pixels = np.asarray(Picture.open(io.BytesIO(draw.store.image_path(key).read_bytes())))
            kept = wanted.numpy().view(np.uint8)[0, :6].reshape(3, 1, 2).transpose(1, 2, 0) // 2
            assert (pixels % 128 == kept).all()
            assert fact.weights == fact.side + "-hash" and (pixels[0, 0, 0] >= 128) == (
                fact.side == "reference"
            )
            assert fact.caption == picture_set.caption and noise["caption_id"] == caption_id(fact.caption)
    assert Counter(fact.flagged for fact in images.values()) == {True: 6, False: 6}
    samples = {images[key].noise["sample"] for key in shown[2].images}
    assert samples == {2, 3}, "the second set of a caption goes on where the first ended"


def test_policy_and_reference_have_no_fixed_place(tmp_path):
    draw = drawer(tmp_path, reference=True)
    places = set()
    for n in range(3):
        picture_set = draw.draw(n)
        images = draw.store.images()
        places.add(tuple(images[key].side for key in picture_set.images))
    assert len(places) > 1


def test_memory_does_not_change_what_a_set_is_called(tmp_path):
    sets = []
    for memory_gb in (4.0, 1.0):
        one = drawer(tmp_path)
        one._options = DrawOptions(0, 7, memory_gb)
        sets.append(one.draw(0))
    assert sets[0] == sets[1]


def test_a_picture_that_is_drawn_twice_stands_once_in_its_set(tmp_path, monkeypatch):
    def draw(self, weights, prompts, keys, plan):
        n = len(keys)
        return Drawing(torch.zeros(n, 1), torch.zeros(n, 1), torch.zeros(n, 3, 1, 2, dtype=torch.uint8))

    monkeypatch.setattr(KeyFamily, "draw", draw)
    assert len(drawer(tmp_path).draw(0).images) == 1
