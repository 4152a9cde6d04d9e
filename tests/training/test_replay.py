"""Images that are replayed: which are kept, what they are worth, and that a resumed run replays the same."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_trainer import SIZE, TINY, TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo.build.room import check_room
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.runs.metrics import read_metrics
from dalle_ppo.runs.space import STATE_BYTES
from dalle_ppo.training import memory
from dalle_ppo.training.replay import ReplayBuffer, buffer_bytes
from dalle_ppo.training.trainer import Trainer

DPOK = {"objective": "dpok", "dpok.replay_images": 12, "dpok.buffer_images": 24}
FEW = {"num_iterations": 3, "checkpoint_every": 2, "evaluation.num_captions": 2}


def trainer_of(run_dir: Path = Path("unused"), **settings) -> Trainer:
    return tiny_trainer(changed(TINY_CONFIG, DPOK | FEW | settings), run_dir)


def numbered(*numbers: int) -> Experience:
    """Scored images whose every column is their number."""
    column = torch.tensor(numbers)
    texts = tuple(map(str, numbers))
    return Experience(
        captions=texts,
        tags=texts,
        caption_ids=texts,
        caption_index=column,
        tokens=column[:, None],
        sampler_log_probs=column[:, None].float(),
        images=None,
        scores=column.float(),
        old_log_probs=column[:, None].float(),
    )


class Reader:
    """Stands for a policy's family."""

    device = torch.device("cpu")

    def read(self, captions):
        return list(captions), 0


def test_the_oldest_images_go_first():
    buffer = ReplayBuffer()
    for images in (numbered(1, 2, 3), numbered(4, 5), numbered(6, 7, 8, 9)):
        buffer = buffer.add(images, 5)
    assert buffer.texts["captions"] == ("5", "6", "7", "8", "9") and len(buffer) == 5
    assert buffer.tensors["scores"].tolist() == [5, 6, 7, 8, 9]
    assert buffer.add(numbered(10, 11, 12), 2).tensors["tokens"].flatten().tolist() == [11, 12]
    assert len(buffer.add(numbered(1), 0)) == 0


def test_images_are_drawn_once_with_all_that_belongs_to_them():
    buffer = ReplayBuffer().add(numbered(*range(40)), 40)
    drawn = buffer.draw(30, torch.Generator().manual_seed(0), Reader())
    numbers = drawn.scores.int().tolist()
    assert len(set(numbers)) == 30 and numbers != sorted(numbers)
    assert [int(text) for text in drawn.captions] == numbers == drawn.tokens.flatten().tolist()
    assert [drawn.prompts[i] for i in drawn.caption_index] == list(drawn.captions)
    assert len(buffer.draw(100, torch.Generator(), Reader())) == 40
    assert ReplayBuffer().draw(3, torch.Generator(), Reader()) is None


def test_an_iteration_learns_from_new_and_earlier_images(monkeypatch):
    trainer, seen = trainer_of(), []
    monkeypatch.setattr(trainer, "update", lambda batch: seen.append(batch) or Trainer.update(trainer, batch))
    metrics = [trainer.iterate(NoWriter()) for _ in range(3)]
    assert [m["images_replayed"] for m in metrics] == [0, 12, 12]
    assert [len(batch) for batch in seen] == [SIZE, SIZE + 12, SIZE + 12]
    assert [m["images"] for m in metrics] == [SIZE, 2 * SIZE, 3 * SIZE], "replayed ones were not drawn again"
    assert metrics[0]["replay_kl"] is None and metrics[1]["replay_kl"] > 1e-4
    first, second, _ = seen
    # Each replayed image is an earlier one, with the log-probs that it was drawn with.
    earlier = {tuple(row.tolist()): old for row, old in zip(first.tokens, first.old_log_probs, strict=True)}
    for tokens, old in zip(second.tokens[SIZE:], second.old_log_probs[SIZE:], strict=True):
        assert torch.equal(earlier[tuple(tokens.tolist())], old)
    assert len(trainer.buffer) == 24


def test_the_joined_batch_pairs_each_image_with_its_own_caption(monkeypatch):
    """Scored again by the same weights, new images have ratio 1; replayed ones match their own replay."""
    trainer, seen = trainer_of(), []
    trainer.iterate(NoWriter())
    monkeypatch.setattr(trainer, "update", lambda batch: seen.append(batch) or {})
    trainer.iterate(NoWriter())
    (both,) = seen
    now = trainer.score_passes(replace(both, reference_states=None))
    torch.testing.assert_close(now.old_log_probs[:SIZE], both.old_log_probs[:SIZE], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(now.ref_log_probs, both.ref_log_probs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(now.values, both.values, atol=1e-4, rtol=1e-4)
    assert (now.old_log_probs[SIZE:] - both.old_log_probs[SIZE:]).abs().max() > 1e-2
    for kept, again in zip(
        vars(both.reference_states).values(), vars(now.reference_states).values(), strict=True
    ):
        torch.testing.assert_close(kept, again, atol=1e-4, rtol=1e-4)


def test_replayed_scores_are_divided_by_the_scale_of_the_new_ones(monkeypatch):
    """With a critic that still predicts 0, a return is the raw score divided by the new images' scale."""
    more = {"credit.whiten_advantages": False, "credit.advantage_clip": None, "critic.learning_rate": 0.0}
    trainer, seen = trainer_of(**more), []
    monkeypatch.setattr(trainer, "update", lambda batch: seen.append(batch) or {})
    trainer.iterate(NoWriter())
    moments = trainer.progress.credit.score_moments
    raw = dict(
        zip(map(tuple, seen[0].tokens.tolist()), trainer.buffer.tensors["scores"].tolist(), strict=True)
    )
    scale = trainer.iterate(NoWriter())["reward_scale"]
    for tokens, returns in zip(seen[1].tokens[SIZE:].tolist(), seen[1].returns[SIZE:], strict=True):
        assert returns.tolist() == pytest.approx([raw[tuple(tokens)] / scale] * len(returns), abs=1e-4)
    assert trainer.progress.credit.score_moments.count == moments.count + SIZE, "each score counts once"


def untimed(run_dir: Path) -> list[dict]:
    timed = ("seconds", "images_per_second", "memory")
    records = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if not k.startswith(timed)} for record in records]


def test_a_resumed_run_replays_the_same_images(tmp_path):
    constant = {"actor.schedule": "constant"}  # the other one knows how long the whole run is
    trainer_of(tmp_path / "whole", **constant).run()
    trainer_of(tmp_path / "halves", num_iterations=2, **constant).run()
    trainer = trainer_of(tmp_path / "halves", **constant)
    trainer.load(load_checkpoint(latest_checkpoint(tmp_path / "halves")))
    assert len(trainer.buffer) == 24
    trainer.run()
    halves = untimed(tmp_path / "halves")
    assert [record["images_replayed"] for record in halves] == [0, 12, 12]
    assert untimed(tmp_path / "whole") == halves


def test_other_objectives_keep_no_images(tmp_path):
    trainer = tiny_trainer(changed(TINY_CONFIG, FEW), tmp_path)
    trainer.iterate(NoWriter())
    assert len(trainer.buffer) == 0
    assert "replay" not in load_checkpoint(trainer.save()).tensors


def test_replayed_advantages_are_in_the_units_of_the_new_ones(monkeypatch):
    """Shifted and scaled by the mean and deviation of the new images, so that better ones stay better."""
    found = {}
    for whiten in (False, True):
        trainer, seen = trainer_of(**{"credit.whiten_advantages": whiten, "credit.advantage_clip": None}), []
        monkeypatch.setattr(trainer, "update", lambda batch, seen=seen: seen.append(batch) or {})
        for _ in range(2):
            trainer.iterate(NoWriter())
        found[whiten] = seen[1].advantages.double()
    new = found[False][:SIZE]
    expected = (found[False] - new.mean()) / new.std(correction=0)
    torch.testing.assert_close(found[True], expected, rtol=1e-4, atol=1e-4)
    assert found[True][SIZE:].mean().abs() > 1e-2, "they have a level of their own"


def test_the_codes_that_tokens_were_drawn_from_are_replayed_too(monkeypatch, tmp_path):
    trainer, seen = trainer_of(tmp_path, **{"policy.top_k": 3}), []
    monkeypatch.setattr(trainer, "update", lambda batch: seen.append(batch) or Trainer.update(trainer, batch))
    for _ in range(2):
        trainer.iterate(NoWriter())
    first, second = seen
    # Two images may have the same tokens, but not the same log-probs as well.
    stored = dict(zip(map(tuple, first.old_log_probs.tolist()), first.kept, strict=True))
    assert second.kept.shape == (SIZE + 12, *first.kept.shape[1:])
    for log_probs, kept in zip(second.old_log_probs[SIZE:].tolist(), second.kept[SIZE:], strict=True):
        assert torch.equal(stored[tuple(log_probs)], kept)
    resumed = trainer_of(tmp_path, **{"policy.top_k": 3})
    resumed.load(load_checkpoint(trainer.save()))
    assert torch.equal(resumed.buffer.tensors["kept"], trainer.buffer.tensors["kept"])


@pytest.mark.parametrize("before, after", [(None, 3), (3, None), (3, 2)])
def test_images_drawn_from_other_codes_are_dropped_when_resuming(before, after, tmp_path):
    """Their log-probs are those of other distributions, and the stored codes do not go together."""
    trainer = trainer_of(tmp_path, **{"policy.top_k": before})
    trainer.iterate(NoWriter())
    resumed = trainer_of(tmp_path, **{"policy.top_k": after})
    with pytest.warns(UserWarning, match=rf"policy\.top_k is {after or 'null'} and was .* the {SIZE} images"):
        resumed.load(load_checkpoint(trainer.save()))
    metrics = [resumed.iterate(NoWriter()) for _ in range(2)]
    assert [m["images_replayed"] for m in metrics] == [0, 12]
    assert len(load_checkpoint(resumed.save()).state["replay"]["captions"]) == 24


def bytes_of_images(num_tokens: int) -> int:
    """Bytes of all tensors that live and have an entry for each token of many images, each memory once."""
    gc.collect()
    found = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.ndim > 1]
    kept = [t for t in found if t.shape[1] == num_tokens and len(t) >= 12]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}.values())


@pytest.mark.parametrize("top_k", [None, 50])
def test_replayed_images_are_in_the_forecasts_of_memory_and_disk(top_k, tmp_path, monkeypatch):
    """Those that are kept, and the batch with the replayed ones that an update learns from."""
    shape = replace(TINY, width=64, num_heads=2, num_image_tokens=61, image_vocab_count=200, num_codes=200)
    config = changed(TINY_CONFIG, DPOK | FEW | {"policy.top_k": top_k, "dpok.buffer_images": 32})
    trainer, held = tiny_trainer(config, tmp_path, shape), []
    before = bytes_of_images(61)
    monkeypatch.setattr(trainer, "update", lambda batch: held.append(bytes_of_images(61) - before) or {})
    for _ in range(3):
        trainer.iterate(NoWriter())
    monkeypatch.setattr(memory, "peak_bytes", lambda *_: 0)  # of activations, which takes seconds
    predicted = memory.predict_memory(config, trainer.networks, None).batch
    assert predicted == pytest.approx(held[2], rel=0.15)
    assert buffer_bytes(config, 61, 200) == sum(t.nbytes for t in trainer.buffer.tensors.values())
    needed = check_room(trainer).one
    tensors = load_checkpoint(trainer.save()).tensors
    written = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
    trained = [learner.module for learner in (trainer.actor, trainer.critic)]
    unwritten = sum(8 * p.numel() for module in trained for p in module.parameters())  # no step was made
    assert needed == pytest.approx(written + unwritten + STATE_BYTES, abs=2000)


def test_scores_that_change_their_units_are_not_replayed():
    with pytest.raises(
        ValueError, match=r"reward\.normalise is per_term; it must be null while dpok\.replay"
    ):
        changed(TINY_CONFIG, DPOK | {"reward.normalise": "per_term"})
    changed(TINY_CONFIG, {"objective": "dpok", "dpok.replay_images": 0, "reward.normalise": "per_term"})
