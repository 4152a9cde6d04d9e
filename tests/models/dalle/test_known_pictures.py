"""A picture is decoded once, and comes out as if nothing had been known before."""

import pytest
import torch
from tiny_trainer import TINY_CONFIG, tiny_trainer

from dalle_ppo.build.models import load_model
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.models.dalle.known_pictures import KnownPictures
from dalle_ppo.policy.rollout import NoiseSource, collect

BYTES = 3 * 4 * 4


class Decoder:
    """Pictures of one brightness, the first token's; counts the rows that it is given."""

    def __init__(self):
        self.rows = []

    def __call__(self, tokens):
        self.rows += tokens[:, 0].tolist()
        return tokens[:, 0].byte()[:, None, None, None].expand(-1, 3, 4, 4).contiguous()


@pytest.fixture(scope="module")
def family():
    return load_model("builtin", torch.device("cpu")).family(TINY_CONFIG.policy)


def tokens(*first):
    return torch.tensor([[number, 7] for number in first])


def brightness(images):
    return images[:, 0, 0, 0].tolist()


def test_nothing_is_decoded_twice():
    decoder, pictures = Decoder(), KnownPictures()
    assert brightness(pictures.decode(tokens(5, 3, 5, 4), decoder)) == [5, 3, 5, 4]
    assert brightness(pictures.decode(tokens(4, 9, 3, 8), decoder)) == [4, 9, 3, 8]
    assert brightness(pictures.decode(tokens(9, 9, 5), decoder)) == [9, 9, 5]
    assert decoder.rows == [5, 3, 4, 9, 8]


def test_tokens_that_differ_late_are_other_pictures():
    def decode(drawn):
        return drawn[:, 1].byte()[:, None, None, None].expand(-1, 3, 4, 4)

    assert brightness(KnownPictures().decode(torch.tensor([[5, 1], [5, 2]]), decode)) == [1, 2]


@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_more_is_kept_than_there_is_room_for(room):
    decoder, pictures = Decoder(), KnownPictures(kept_bytes=room * BYTES + 1)
    for _ in range(2):
        assert brightness(pictures.decode(tokens(1, 2, 3, 4), decoder)) == [1, 2, 3, 4]
    assert decoder.rows == [1, 2, 3, 4, *[1, 2, 3, 4][room:]]
    assert sum(pixels.untyped_storage().nbytes() for pixels in pictures.known.values()) == room * BYTES


@pytest.mark.parametrize("known", [0, 39])
def test_pixels_do_not_depend_on_what_is_known(family, known):
    """The convolutions of a single image round otherwise than those of several: this is the real VQGAN."""
    generator = torch.Generator().manual_seed(0)
    codes = family.parts.vqgan.config.num_codes
    drawn = torch.randint(codes, (40, family.parts.vqgan.config.grid_size**2), generator=generator)
    expected = family.decode(drawn)
    once = family.decoding_once()
    for row in drawn[:known]:
        once.decode(row[None])
    assert once.decode(drawn).equal(expected)


@pytest.mark.parametrize("size", [3, 39])
def test_pixels_do_not_depend_on_how_many_are_decoded_at_a_time(family, size):
    vqgan = family.parts.vqgan
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(vqgan.config.num_codes, (40, vqgan.config.grid_size**2), generator=generator)
    assert vqgan.decode_uint8(drawn, size).equal(vqgan.decode_uint8(drawn))


def test_drawn_images_are_the_same_and_fewer_are_decoded(monkeypatch):
    captions = [CaptionRecord(f"caption {number}", "UNTAGGED", f"{number:016x}") for number in range(4)]
    trainer = tiny_trainer(TINY_CONFIG)
    given = trainer.networks.reference, captions, 2, NoiseSource(1, "evaluation")
    expected = collect(trainer.family, *given)
    vqgan, seen = type(trainer.family.parts.vqgan), []
    decode = vqgan.decode_uint8
    monkeypatch.setattr(
        vqgan, "decode_uint8", lambda self, drawn, size=None: seen.append(drawn) or decode(self, drawn, size)
    )
    once = trainer.family.decoding_once()
    for _ in range(2):
        drawn = collect(once, *given)
        assert drawn.tokens.equal(expected.tokens) and drawn.images.equal(expected.images)
    assert len(torch.cat(seen)) == len(expected.tokens.unique(dim=0))
