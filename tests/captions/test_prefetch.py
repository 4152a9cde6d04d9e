"""Captions drawn ahead: the same batches, the position of the batch handed out, no waiting, no lost error."""

import json
import threading
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from laion_tables import everything, laion_table, open_source

from dalle_ppo.captions import prefetch as caption_prefetch
from dalle_ppo.captions.prefetch import PrefetchedCaptions
from dalle_ppo.captions.shards import Chunk
from dalle_ppo.captions.source import CaptionRequest


@pytest.fixture
def make(tmp_path):
    for part in range(3):
        table = laion_table(900, part * 900)
        pq.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=250)
    return partial(open_source, str(tmp_path), everything(), {"NSFW": 0.5, "OTHER": 0.5})


class GatedShard:
    """Two captions a chunk, read while `gate` is open; an error once it is `broken`."""

    def __init__(self):
        self.name = "gated"
        self.gate, self.broken = threading.Event(), threading.Event()
        self.gate.set()

    def num_groups(self):
        return 1

    def may_hold(self, group, tag):
        return True

    def chunks(self, group):
        for i in range(10_000):
            self.gate.wait(20)
            if self.broken.is_set():
                raise ValueError("gated: cannot be read")
            yield Chunk(pa.array([f"a {i}", f"b {i}"]), pa.array(["x", "x"]))


def gated_source(shard):
    return CaptionRequest(everything()).draw_from([shard])


def settle(source):
    """Wait until everything is there that is drawn ahead."""
    for drawing in source._drawings:
        drawing.join(20)
        assert not drawing.is_alive()


def test_batches_are_those_of_the_source(make):
    plain, prefetched = make(), PrefetchedCaptions(make(), ahead=3)
    for n in (10, 10, 10, 7, 7, 25):
        assert prefetched.next_batch(n) == plain.next_batch(n)
        assert prefetched.metrics() == plain.metrics()


@pytest.mark.parametrize("before", [0, 1, 4])
def test_the_position_is_that_of_the_batch_handed_out(make, before):
    original = PrefetchedCaptions(make())
    for _ in range(before):
        original.next_batch(12)
    settle(original)
    state = json.loads(json.dumps(original.state_dict()))
    plain = make()
    plain.next_batch(12 * before)
    assert state == json.loads(json.dumps(plain.state_dict()))
    due = [original.next_batch(12) for _ in range(3)]
    resumed = PrefetchedCaptions(make())
    resumed.next_batch(5)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert [resumed.next_batch(12) for _ in range(3)] == due
    assert resumed.metrics() == original.metrics()
    plain.load_state_dict(original.state_dict())  # both kinds understand a position
    assert plain.next_batch(12) == original.next_batch(12)


def test_a_position_of_other_captions_is_refused_and_nothing_moves(make):
    other = open_source("prompts:counting", everything())
    source, undisturbed = PrefetchedCaptions(make()), make()
    assert source.next_batch(6) == undisturbed.next_batch(6)
    with pytest.raises(ValueError, match="not the files of the saved position"):
        source.load_state_dict(other.state_dict())
    assert source.next_batch(6) == undisturbed.next_batch(6)


def test_what_was_drawn_ahead_needs_no_reading():
    shard = GatedShard()
    source = PrefetchedCaptions(gated_source(shard), ahead=4)
    source.next_batch(2)
    settle(source)
    shard.gate.clear()
    assert [len(source.next_batch(2)) for _ in range(4)] == [2] * 4
    shard.gate.set()


def test_no_more_is_drawn_ahead_than_asked_for():
    inner = gated_source(GatedShard())
    source = PrefetchedCaptions(inner, ahead=3)
    source.next_batch(2)
    settle(source)
    assert inner.metrics()["captions/drawn"] == 8


def test_an_error_comes_with_its_batch_and_asking_again_tries_again():
    shard = GatedShard()
    source, plain = PrefetchedCaptions(gated_source(shard), ahead=2), gated_source(GatedShard())
    assert source.next_batch(4) == plain.next_batch(4)
    settle(source)
    shard.broken.set()
    for _ in range(2):  # drawn before it broke
        assert source.next_batch(4) == plain.next_batch(4)
    state = source.state_dict()
    for _ in range(2):
        with pytest.raises(ValueError, match="gated: cannot be read"):
            source.next_batch(4)
        assert source.state_dict() == state
    shard.broken.clear()
    for _ in range(4):
        assert source.next_batch(4) == plain.next_batch(4)


def test_going_to_a_position_does_not_wait_for_a_read_that_stalls():
    shard = GatedShard()
    source, plain = PrefetchedCaptions(gated_source(shard), ahead=2), gated_source(GatedShard())
    source.next_batch(4)
    plain.next_batch(4)
    before = source.state_dict()
    settle(source)
    shard.gate.clear()
    source.next_batch(4)
    source.load_state_dict(before)
    assert source.state_dict() == before
    shard.gate.set()
    for _ in range(3):
        assert source.next_batch(4) == plain.next_batch(4)


def test_a_long_wait_is_not_silent(monkeypatch):
    monkeypatch.setattr(caption_prefetch, "SECONDS_BETWEEN_WARNINGS", 0.1)
    shard = GatedShard()
    shard.gate.clear()
    threading.Timer(0.5, shard.gate.set).start()
    with pytest.warns(UserWarning, match="waiting for the next batch"):
        assert len(PrefetchedCaptions(gated_source(shard)).next_batch(2)) == 2
