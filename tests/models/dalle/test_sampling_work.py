"""What a rollout computes: nothing twice."""

from collections import defaultdict

import pytest
import torch
from tiny_models import TINY, tiny_bart, tiny_prompts
from tiny_trainer import TinyTokenizer, TinyVqgan
from torch import nn

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.models.dalle.sampling import noise_keys
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.policy.rollout import FrozenParts, NoiseSource, collect, sample_in_parts

TEXTS = ("a red boat", "two trees", "a skull on the table")
LONGEST = 7  # tokens of the last, begin and end counted
SAMPLES = 2


def record_inputs(network: nn.Module, name: str, into: dict[str, list[torch.Size]]) -> None:
    """Writes down the shape of the first argument of every call of a part of a network."""
    part = network.get_submodule(name)
    part.register_forward_hook(lambda module, arguments, output: into[name].append(arguments[0].shape))


@pytest.mark.parametrize("settings", [PolicySettings(guidance=3.0), PolicySettings(guidance=1.0)])
def test_captions_are_read_once_and_every_position_is_computed_once(settings):
    encoder, decoder = tiny_bart()
    encoded, calls = defaultdict(list), defaultdict(list)
    record_inputs(encoder, "", encoded)
    linear = [name for name, part in decoder.layers.named_modules() if isinstance(part, nn.Linear)]
    for name in linear:
        record_inputs(decoder.layers, name, calls)
    records = [CaptionRecord(text, "UNLIKELY", f"{i}") for i, text in enumerate(TEXTS)]
    parts = FrozenParts(TinyTokenizer(), encoder, TinyVqgan())
    with torch.no_grad():
        collect(decoder, parts, records, SAMPLES, NoiseSource(0, "rollout"), settings)

    rows = [len(TEXTS)] + [1] * settings.guided  # of the captions, and of the unconditional one
    lengths = [LONGEST] + [2] * settings.guided
    assert sorted(shape[0] for shape in encoded[""]) == sorted(rows)
    images, length = len(TEXTS) * SAMPLES, TINY.num_image_tokens
    assert len(linear) == TINY.num_layers * 11
    for name in linear:
        layer, part = name.split(".", 1)
        vectors = [shape.numel() // shape[-1] for shape in calls[name]]
        if part in ("encoder_attn.k_proj", "encoder_attn.v_proj"):
            assert vectors == [m * s for m, s in zip(rows, lengths, strict=True)], name
        else:
            # The branches part ways where the first layer reads the captions.
            shared = layer == "0" and (part.startswith("self_attn") or part == "encoder_attn.q_proj")
            assert vectors == [images * (1 if shared else len(rows))] * length, name


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 8])
def test_a_batch_in_parts_reads_no_caption_twice(batch_size):
    settings, (encoder, decoder) = PolicySettings(guidance=3.0), tiny_bart()
    prompts, calls = tiny_prompts(encoder, settings, 4, 10, 7), defaultdict(list)
    record_inputs(decoder, "layers.0.encoder_attn.k_proj", calls)
    keys = noise_keys(0, "rollout", 0, [str(i) for i in range(12)], range(12))
    sample_in_parts(decoder, prompts, keys, settings, batch_size)
    (shapes,) = calls.values()
    assert sum(shape[0] for shape in shapes) == 3 + 1, "three captions and the unconditional one"
