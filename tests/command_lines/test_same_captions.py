"""Captions that each process reads for itself must be the same everywhere. Threads stand in for processes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from thread_teams import thread_teams, together
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.train import check_captions

ANCHORED = {"anchor.coef": 0.5, "anchor.num_images": 4, "anchor.minibatch_size": 4}
EVALUATED = [CaptionRecord(f"caption {i}", "T", str(i)) for i in range(3)]


def of_another_text(records: list[CaptionRecord]) -> list[CaptionRecord]:
    return [*records[:-1], replace(records[-1], text="another text")]


def outcomes(changes: dict, differing: str | None) -> list:
    """What two processes say, of which the second has read other captions for one purpose."""
    made, teams = tiny_trainer(changed(TINY_CONFIG, changes)), thread_teams(2)
    samples, anchor = made.sample_captions, made.networks.anchor
    if differing == "samples":
        samples = of_another_text(samples)
    if differing == "anchor":
        texts = (*anchor.images.captions[:-1], "another text")
        anchor = replace(anchor, images=replace(anchor.images, captions=texts))

    def check(rank: int) -> None:
        given = (samples, anchor) if rank == 1 else (made.sample_captions, made.networks.anchor)
        networks = SimpleNamespace(anchor=given[1])
        trainer = SimpleNamespace(sample_captions=given[0], networks=networks, team=teams[rank])
        own = of_another_text(EVALUATED) if rank == 1 and differing == "evaluation" else EVALUATED
        check_captions(trainer, own)

    return together(teams, check)


@pytest.mark.parametrize("changes", [{}, ANCHORED])
def test_processes_that_have_read_the_same_go_on(changes):
    assert outcomes(changes, None) == [None, None]


@pytest.mark.parametrize("purpose", ["samples", "anchor", "evaluation"])
def test_processes_that_have_read_something_else_are_refused(purpose):
    first, second = (str(error) for error in outcomes(ANCHORED, purpose))
    assert first == second and "\n" not in first
    assert first.startswith(f"process 1 has captions of the {purpose} with the hash ")
    assert first.endswith("give all machines the same files of captions.source")
