"""Many images within a budget of memory, and `generate` with DALL·E mini's weights."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from memory_peak import alone, peak_growth
from PIL import Image
from published_models import SMALL, SMALL_VQGAN, random_published, reduce_presets, write_published
from tiny_models import TINY, tiny_bart, tiny_prompts
from torch._subclasses.fake_tensor import FakeTensorMode

from dalle_ppo import generate
from dalle_ppo.build.models import choose_device, load_model
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder
from dalle_ppo.models.dalle.family import DalleFamily, FrozenParts
from dalle_ppo.models.dalle.memory_plan import MemoryPlan, plan_memory
from dalle_ppo.models.dalle.presets import VqganConfig
from dalle_ppo.models.dalle.sampling import sample
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.noise import noise_keys


def image_keys(caption: str, count: int) -> torch.Tensor:
    return noise_keys(0, "generate", 0, [caption] * count, range(count))


CPU = torch.device("cpu")
GUIDED, PLAIN = PolicySettings(guidance=3.0), PolicySettings(guidance=1.0)
WIDE = VqganConfig(
    channels=(64, 64),
    num_codes=32,
    code_width=8,
    blocks_per_level=1,
    norm_groups=8,
    attention=False,
    image_size=128,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings, branches", [(GUIDED, 2), (PLAIN, 1)])
def test_cache_bytes_are_those_of_the_cache(dtype, settings, branches):
    _, decoder = tiny_bart(dtype=dtype)
    plan = plan_memory(decoder, VqganDecoder(WIDE), settings, 5, 1e9)
    caches = decoder.new_cache(5, branches)
    config = decoder.config
    for i, cache in enumerate(caches):
        rows = 5 if i == 0 else branches * 5
        token = torch.zeros(rows, config.num_heads, 1, config.width // config.num_heads, dtype=dtype)
        for position in range(config.num_image_tokens):
            cache.write(token, token, torch.tensor([position]))
    assert plan.cache_bytes * 5 == sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
    assert (plan.batch_size, plan.microbatch_size) == (5, 5)


def test_a_batch_is_split_to_fit():
    _, decoder = tiny_bart()
    whole = plan_memory(decoder, VqganDecoder(WIDE), GUIDED, 100, 1e12)
    for budget in (3.5 * whole.pixel_bytes, 20.1 * whole.pixel_bytes):
        plan = plan_memory(decoder, VqganDecoder(WIDE), GUIDED, 100, budget)
        assert plan.microbatch_size == int(budget / whole.pixel_bytes)
        assert plan.batch_size * plan.image_bytes <= budget
        assert plan.batch_size == 100 or (plan.batch_size + 1) * plan.image_bytes > budget
    with pytest.raises(ValueError, match=r"memory_gb is 0\.001; one image needs 0\.0419"):
        plan_memory(decoder, VqganDecoder(WIDE), GUIDED, 1, 1e6)


@torch.no_grad()
def test_the_plan_without_a_bound_is_what_is_done(monkeypatch):
    vqgan, (_, decoder) = VqganDecoder(WIDE), tiny_bart()
    plan = plan_memory(decoder, vqgan, GUIDED, 40, math.inf)
    at_once = []
    monkeypatch.setattr(vqgan, "forward", lambda tokens: at_once.append(len(tokens)) or torch.zeros(1))
    vqgan.decode_uint8(torch.zeros(40, 64 * 64, dtype=torch.long))
    assert plan.batch_size == 40 and plan.microbatch_size == max(at_once) < 40
    assert plan_memory(decoder, vqgan, GUIDED, 3, math.inf).microbatch_size == 3


def test_the_plan_of_a_gpu_counts_what_is_laid_out_anew_and_no_growth():
    """On tensors without content, whose device says it is CUDA."""
    on_cpu = VqganDecoder(WIDE), tiny_bart()[1]
    with FakeTensorMode(), torch.device("cuda"):
        on_gpu = VqganDecoder(WIDE), BartDecoder(TINY)
    layer = TINY.width * (3 * TINY.width + 2 * TINY.glu_width)
    cpu, gpu = (plan_memory(bart, vqgan, GUIDED, 5, 1e9) for vqgan, bart in (on_cpu, on_gpu))
    assert gpu.weight_bytes == 4 * TINY.num_layers * layer and cpu.weight_bytes == 0
    cross = TINY.num_layers * 2 * TINY.num_text_tokens * TINY.width * 4  # laid out once more, too
    assert cpu.image_bytes - gpu.image_bytes + cross == cpu.cache_bytes == gpu.cache_bytes
    budget = gpu.pixel_bytes
    many = plan_memory(on_gpu[1], on_gpu[0], GUIDED, 10**9, budget)
    assert many.batch_size * gpu.image_bytes + gpu.weight_bytes <= budget
    assert (many.batch_size + 1) * gpu.image_bytes + gpu.weight_bytes > budget
    assert on_gpu[0].images_at_once == 4 * on_cpu[0].images_at_once


def test_a_plan_is_for_the_device_that_draws_wherever_the_policy_is_now():
    """A dry run of processes that share networks leaves them on the CPU."""
    with FakeTensorMode(), torch.device("cuda"):
        vqgan, encoder, decoder = VqganDecoder(WIDE), BartEncoder(TINY), BartDecoder(TINY)
    plan = DalleFamily(FrozenParts(None, encoder, vqgan), GUIDED).plan(tiny_bart()[1], 5, 1.0)
    assert plan == plan_memory(decoder, vqgan, GUIDED, 5, 1e9) and plan.weight_bytes > 0


@torch.no_grad()
def growth_while_decoding() -> tuple[int, MemoryPlan]:
    vqgan, (_, decoder) = VqganDecoder(WIDE), tiny_bart()
    plan = plan_memory(decoder, vqgan, PLAIN, 2, 1e9)
    tokens = torch.zeros(4, 64 * 64, dtype=torch.long)
    vqgan.decode_uint8(tokens[:1], 1)
    return peak_growth(lambda: vqgan.decode_uint8(tokens, plan.microbatch_size))[0], plan


def test_decoding_stays_within_its_plan():
    grown, plan = alone(growth_while_decoding)
    assert plan.microbatch_size == 2
    planned = plan.microbatch_size * plan.pixel_bytes
    assert planned / 3 < grown < planned


@torch.no_grad()
def growth_while_sampling(settings: PolicySettings) -> tuple[int, MemoryPlan]:
    shape = replace(TINY, width=256, num_heads=4, num_layers=4, num_image_tokens=128)
    encoder, decoder = tiny_bart(shape)
    plan, prompts = (
        plan_memory(decoder, VqganDecoder(WIDE), settings, 24, 1e9),
        tiny_prompts(encoder, settings, 8),
    )
    sample(decoder, prompts, image_keys("warm", 1), settings)
    return peak_growth(lambda: sample(decoder, prompts, image_keys("a", 24), settings))[0], plan


@pytest.mark.parametrize("settings", [GUIDED, PLAIN], ids=["guided", "plain"])
def test_sampling_stays_within_its_plan(settings):
    grown, plan = alone(growth_while_sampling, settings)
    assert plan.batch_size == 24
    assert plan.batch_size * plan.cache_bytes / 2 < grown < 1.1 * plan.batch_size * plan.image_bytes


@pytest.fixture(scope="module")
def builtin():
    return load_model("builtin", CPU)


def test_splitting_changes_no_image(builtin):
    settings = PolicySettings(guidance=1.0, temperature=2.0)  # as many different images as there can be
    family, keys, pictures = builtin.family(settings), image_keys("some caption", 15), []
    prompts, num_cut = family.read(["a red boat"])
    assert num_cut == 0
    for memory in (1e9, 4.5e6):
        plan = family.plan(builtin.decoder, 15, memory / 1e9)
        drawn = family.draw(builtin.decoder, prompts, keys, plan).images
        assert drawn.shape == (15, 3, 64, 64) and drawn.dtype == torch.uint8
        pictures.append(drawn.float())
    assert plan.batch_size < 15 and plan.microbatch_size < 15
    # Kernels round differently at another batch size, so a pixel may differ by one; noise may not.
    assert (pictures[0] - pictures[1]).abs().max() <= 1
    assert len({image.numpy().tobytes() for image in pictures[0]}) == 15


# --- the command line with mini's weights


@pytest.fixture
def mini(tmp_path, monkeypatch):
    reduce_presets(monkeypatch, SMALL, SMALL_VQGAN)
    return write_published(tmp_path / "weights", random_published(SMALL, vqgan=SMALL_VQGAN))


def draw(cli, out, *arguments, caption="a red boat") -> tuple[np.ndarray, str]:
    outcome = cli(generate.main, caption, "--out", out, *arguments)
    assert outcome.code == 0, outcome.err
    with Image.open(out) as picture:
        return np.asarray(picture), outcome.out


def test_generate_draws_a_grid_with_published_weights(mini, tmp_path, cli):
    first, printed = draw(cli, tmp_path / "a.png", "--model", mini, "--grid_size", "2")
    assert first.shape == (2 * (2 * 64 + 6), 2 * (2 * 64 + 6), 3)
    assert re.search(r"^cache 0\.\d MB per image; 4 sampled at a time", printed, re.MULTILINE)
    assert "images are not checked: these weights come without an NSFW detector" in printed
    package = ("--guidance", "16", "--temperature", "1", "--top_k", "256", "--start_token", "70")
    same, _ = draw(cli, tmp_path / "b.png", "--model", mini, "--num_images", "4", *package)
    assert (same == first).all(), "drawn as the package does, but for the start token"
    for name, value in (("guidance", 2), ("top_k", 1), ("start_token", 69), ("seed", 1), ("temperature", 4)):
        changed = ("--model", mini, "--grid_size", "2", f"--{name}", str(value))
        assert (draw(cli, tmp_path / "c.png", *changed)[0] != first).any(), name


@pytest.mark.parametrize("count, guidance, rows", [(1, 16, []), (2, 1, []), (2, 16, [4]), (3, 1, [3])])
def test_several_images_are_drawn_from_packed_weights(
    count, guidance, rows, mini, tmp_path, cli, monkeypatch
):
    packed, pack = [], BartDecoder.pack
    monkeypatch.setattr(BartDecoder, "pack", lambda self, num: packed.append(num) or pack(self, num))
    options = ("--num_images", str(count), "--guidance", str(guidance))
    draw(cli, tmp_path / "a.png", "--model", mini, *options)
    assert packed == rows


@pytest.mark.parametrize(
    "caption, cut, lost",
    [
        ("💀❤️", False, False),
        ("ein Bär in Öl", False, False),
        ("boat " * 2500, True, False),
        ("日本", False, True),
        ("красная лодка", False, True),
    ],
)
def test_any_caption_is_drawn_and_what_is_lost_of_it_is_said(caption, cut, lost, mini, tmp_path, cli):
    arguments = ("--model", mini, "--num_images", "1")
    _, printed = draw(cli, tmp_path / "a.png", *arguments, caption=caption)
    assert printed.count("longer than 64 tokens and was cut") == cut
    assert printed.count("the model cannot read any of the caption") == lost


def test_what_is_true_of_both_sides_is_said_once(mini, tmp_path, cli):
    arguments = ("--model", mini, "--num_images", "1", "--compare")
    _, printed = draw(cli, tmp_path / "a.png", *arguments, caption="boat " * 2500)
    for words in ("sampled at a time", "longer than 64 tokens and was cut", "images are not checked"):
        assert printed.count(words) == 1, words


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--grid_size", "0"), "--grid_size is 0"),
        (("--grid_size", "2", "--num_images", "4"), "not allowed with"),
        (("--start_token", "71"), "the model has tokens 0 to 70"),
        (("--memory_gb", "0"), "--memory_gb is 0"),
        (("--memory_gb", "0.0001"), "one image needs"),
        (("--dtype", "int8"), "--dtype"),
        (("--device", "mps"), "device is 'mps'; use auto, cpu, cuda or cuda:N"),
        (("--out", "a.psx"), "a.psx: .psx is not an image format"),
        (("--device", "cuda:99"), "device is cuda:99, but this machine has"),
    ],
)
def test_bad_arguments_cost_one_line(arguments, words, mini, tmp_path, cli):
    outcome = cli(generate.main, "a boat", "--out", tmp_path / "a.png", "--model", mini, *arguments)
    assert outcome.code == 2 and words in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device is cuda:2, but this machine has 2 GPUs"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="has no CUDA; use --device cpu"):
        choose_device("cuda")
