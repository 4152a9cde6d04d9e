"""The built-in world as a source of captions: its mix, its split, exact resume, and what it refuses."""

import hashlib
from collections import Counter

import pytest
from laion_tables import everything, texts

from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.source import CaptionRequest
from dalle_ppo.captions.streams import DrawSettings
from dalle_ppo.captions.text import CaptionFilter
from dalle_ppo.iconworld.stream import load


def drawn(num, **settings):
    return load("", CaptionRequest(DrawSettings(**settings))).next_batch(num)


def test_processes_divide_what_one_process_would_draw():
    """Of each tag, each draws its part in the order of one process; no caption is drawn by both."""
    one, two = drawn(4000), [drawn(1600, rank=rank, world_size=2) for rank in (0, 1)]
    ids = [{record.id for record in records} for records in two]
    assert not ids[0] & ids[1] and min(map(len, ids)) > 1000
    for records, own in zip(two, ids, strict=True):
        for tag in ("UNLIKELY", "UNSURE", "NSFW"):
            expected = [record for record in one if record.tag == tag and record.id in own]
            found = [record for record in records if record.tag == tag]
            assert found[:300] == expected[:300]


def test_one_process_draws_what_it_always_drew():
    drawn_before = "f319d3b862b3ff46"
    digest = hashlib.sha256("\n".join(texts(drawn(200, seed=1))).encode()).hexdigest()
    assert digest.startswith(drawn_before)


def test_its_mix_and_its_split():
    train, heldout = drawn(200, seed=1), drawn(200, seed=1, split="heldout", stream=1)
    assert Counter(r.tag for r in train) == {"UNLIKELY": 100, "UNSURE": 50, "NSFW": 50}
    assert not {r.id for r in train} & {r.id for r in heldout}
    assert Counter(r.tag for r in train[:8]) == {"UNLIKELY": 4, "UNSURE": 2, "NSFW": 2}


def test_the_next_batch_after_a_resume_is_the_one_that_was_due():
    request = CaptionRequest(DrawSettings(seed=3))
    original, resumed = load("", request), load("", request)
    original.next_batch(37)
    resumed.load_state_dict(original.state_dict())
    assert resumed.next_batch(50) == original.next_batch(50)
    other = load("", CaptionRequest(DrawSettings(seed=4)))
    with pytest.raises(ValueError, match="seed"):
        other.load_state_dict(original.state_dict())


@pytest.mark.parametrize(
    "rest, request_, message",
    [
        ("", CaptionRequest(everything(filter=CaptionFilter(min_chars=5))), r"leave captions\."),
        ("", CaptionRequest(everything(clean=True)), r"leave captions\."),
        ("", CaptionRequest(everything(skip_bad_files=True)), "captions are in no files"),
        ("", CaptionRequest(everything(), reading=ReadSettings(column="TEXT")), r"leave captions\."),
        ("", CaptionRequest(everything(), {"UNSAFE": 1.0}), "no tag 'UNSAFE'"),
        ("mini", CaptionRequest(everything()), "builtin:mini"),
    ],
)
def test_what_would_be_ignored_is_refused(rest, request_, message):
    with pytest.raises(ValueError, match=message):
        load(rest, request_)
