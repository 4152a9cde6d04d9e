"""The judge says the same of an image in a small batch and with channels last as in one plain batch."""

import numpy as np
import torch
from safetensors.torch import load_file

from dalle_ppo.iconworld.judge import (
    IMAGES_AT_ONCE,
    PRESENT_THRESHOLD,
    Judge,
    load_judge,
    look,
    sample_scenes,
)
from dalle_ppo.iconworld.world import World


@torch.no_grad()
def test_small_batches_and_channels_last_change_nothing_but_rounding():
    _, drawn = sample_scenes(np.random.default_rng(5), 2 * IMAGES_AT_ONCE + 3, "heldout", junk_share=0.25)
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()
    path = World().judge
    plain = Judge()
    plain.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    logits, colors = plain.double()(images.double() / 255)
    judge = load_judge(path)
    assert judge.body[0].weight.is_contiguous(memory_format=torch.channels_last)
    other = judge((images[:7].float() / 255).contiguous(memory_format=torch.channels_last))
    for found, exact in zip(other, (logits[:7], colors[:7]), strict=True):
        assert (found - exact).abs().max() < 1e-4 * exact.abs().max()
    seen = look(judge, images)
    certain = ((logits.sigmoid() - PRESENT_THRESHOLD).abs() > 1e-3).numpy()
    assert certain.mean() > 0.99
    assert ((seen.present == (logits.sigmoid() > PRESENT_THRESHOLD).numpy()) | ~certain).all()
    assert (seen.color == colors.argmax(-1).numpy())[seen.present].all()
