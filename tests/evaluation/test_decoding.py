"""Each picture of an evaluation is decoded once, and comes out as if it had been decoded by itself."""

import dataclasses

import pytest
import torch
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.base.halving import Halving
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.evaluation.decoding import Decoded
from dalle_ppo.evaluation.drawing import Setup
from dalle_ppo.evaluation.measures import Measures
from dalle_ppo.models.dalle.family import DalleFamily
from dalle_ppo.policy.rollout import NoiseSource, collect

BYTES = 3 * 4 * 4
CAPTIONS = [CaptionRecord(f"caption {number}", "UNTAGGED", f"{number:016x}") for number in range(4)]


class Decoder:
    """Pictures of one brightness, the first token's; counts the rows that it is given."""

    def __init__(self):
        self.rows = []

    def __call__(self, tokens):
        self.rows += tokens[:, 0].tolist()
        return tokens[:, 0].byte()[:, None, None, None].expand(-1, 3, 4, 4).contiguous()


def tokens(*first):
    return torch.tensor([[number, 7] for number in first])


def brightness(images):
    return images[:, 0, 0, 0].tolist()


def test_nothing_is_decoded_twice():
    decoder = Decoder()
    decoded = Decoded(decoder)
    assert brightness(decoded(tokens(5, 3, 5, 4))) == [5, 3, 5, 4]
    assert brightness(decoded(tokens(4, 9, 3))) == [4, 9, 3]
    assert brightness(decoded(tokens(9, 9, 5))) == [9, 9, 5]
    assert decoder.rows == [5, 3, 4, 9]


def test_tokens_that_differ_late_are_other_pictures():
    decoded = Decoded(lambda drawn: drawn[:, 1].byte()[:, None, None, None].expand(-1, 3, 4, 4))
    assert brightness(decoded(torch.tensor([[5, 1], [5, 2]]))) == [1, 2]


@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_more_is_kept_than_there_is_room_for(room):
    decoder = Decoder()
    decoded = Decoded(decoder, kept_bytes=room * BYTES + 1)
    for _ in range(2):
        assert brightness(decoded(tokens(1, 2, 3))) == [1, 2, 3]
    assert decoder.rows == [1, 2, 3, *[1, 2, 3][room:]]
    assert sum(pixels.untyped_storage().nbytes() for pixels in decoded.known.values()) == room * BYTES


def test_images_of_an_evaluation_are_those_that_sampling_decodes(monkeypatch, tmp_path):
    trainer = tiny_trainer(changed(TINY_CONFIG, {"evaluation.samples_per_caption": 2}))
    captions = CAPTIONS
    reference, family = trainer.networks.reference, trainer.family
    setup = Setup(trainer.config, reference, family, Measures(trainer.reward), captions, tmp_path, {})
    noise = NoiseSource(trainer.config.evaluation.seed, "evaluation")
    expected = collect(family, family.sampler_weights(reference), captions, 2, noise)
    decode, given = DalleFamily.decode, []
    monkeypatch.setattr(
        DalleFamily, "decode", lambda self, drawn: given.append(len(drawn)) or decode(self, drawn)
    )
    for _ in range(2):
        drawn = setup.collect(reference, captions, 2)
        assert drawn.tokens.equal(expected.tokens) and drawn.images.equal(expected.images)
    assert sum(given) == len(expected.tokens.unique(dim=0))


def test_memory_that_runs_out_while_decoding(monkeypatch, tmp_path):
    trainer = tiny_trainer(TINY_CONFIG)
    captions = CAPTIONS
    shared = (trainer.networks.reference, trainer.family, Measures(trainer.reward), captions, tmp_path, {})
    whole = Setup(trainer.config, *shared).collect(trainer.networks.reference, captions, 1)
    decode = DalleFamily.decode

    def limited(self, drawn):
        if len(drawn) > 2:
            raise torch.OutOfMemoryError("injected")
        return decode(self, drawn)

    monkeypatch.setattr(DalleFamily, "decode", limited)
    setup = dataclasses.replace(Setup(trainer.config, *shared), halving=Halving())
    with pytest.warns(UserWarning, match=r"while decoding .* A lower evaluation\.batch_size avoids this"):
        halved = setup.collect(trainer.networks.reference, captions, 1)
    assert halved.images.equal(whole.images)
