"""configs/laion_nsfw_*.yaml: they parse, say everything that matters, and fit what they say they fit."""

import pytest
import yaml
from laion_configs import (
    ACTIVATIONS,
    CACHE_IMAGE,
    CLIP_AND_VQGAN,
    CONFIGS,
    CRITIC,
    DECODER,
    ENCODER,
    GIGABYTES,
    KEYS_VALUES,
    VQGAN_IMAGE,
    load,
)

from dalle_ppo.config.command_line import to_dict
from dalle_ppo.train import by_dotted_name


@pytest.mark.parametrize("size", GIGABYTES)
def test_it_trains_that_model_on_laions_captions_with_laions_detector(size):
    config = load(size)
    assert config.model.path == size and config.device == "cuda"
    assert config.captions.source == "hub:laion/relaion400m"
    assert config.captions.shares == {"NSFW": 0.5, "OTHER": 0.5}
    assert (config.clip.model, config.clip.pretrained) == ("ViT-L-14-quickgelu", "openai")
    assert config.reward.settings_of("nsfw").detector == "laion-l14"
    held_out = config.evaluation.heldout_clip
    assert (held_out.model, config.evaluation.heldout_detector) == ("ViT-B-32-quickgelu", "laion-b32")
    assert config.policy.guidance > 1.5, "the built-in world's guidance is not theirs"


@pytest.mark.parametrize("size", GIGABYTES)
def test_every_setting_is_spelled_out(size):
    """Defaults are tuned on the built-in world: none may slip in unseen."""
    written = yaml.safe_load((CONFIGS / f"laion_nsfw_{size}.yaml").read_text(encoding="utf-8"))
    resolved = to_dict(load(size))
    del resolved["run_dir"]
    assert by_dotted_name(written).keys() == by_dotted_name(resolved).keys()
    for term, complete in zip(written["reward"]["terms"], resolved["reward"]["terms"], strict=True):
        assert term.keys() == complete.keys()


def test_the_two_differ_only_where_the_models_do():
    mini, mega = (
        yaml.safe_load((CONFIGS / f"laion_nsfw_{size}.yaml").read_text(encoding="utf-8"))
        for size in GIGABYTES
    )
    for section in ("policy", "captions", "clip", "reward", "credit", "ppo", "kl"):
        assert mini[section] == mega[section]


@pytest.mark.parametrize("size", GIGABYTES)
def test_the_memory_fits(size):
    """Weights, gradients, Adam and activations, a tenth to spare; drawing, without gradients."""
    config = load(size)
    frozen = ENCODER[size] + 2 * DECODER[size] + CRITIC[size] + CLIP_AND_VQGAN
    adam, gradients = (n * (KEYS_VALUES[size] + CRITIC[size]) for n in (2, 1))
    update = frozen + adam + gradients + config.update.microbatch_size * ACTIVATIONS[size]
    assert update < 0.9 * GIGABYTES[size]
    for images in (config.rollout.rollout_batch_size, config.evaluation.batch_size, 32):
        drawing = max(images * CACHE_IMAGE[size], min(4, images) * VQGAN_IMAGE)
        assert frozen + adam + drawing < 0.9 * GIGABYTES[size]
