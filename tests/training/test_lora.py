"""LoRA on actor and critic: against peft's own loader and merge, over saving, resuming and sampling."""

import json
from functools import cache

import pytest
import torch
from tiny_models import TINY, captions, image_tokens, tiny_bart
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo.build.models import LoadedModel
from dalle_ppo.build.networks import build_networks
from dalle_ppo.models.adapters import (
    Lora,
    adapter_config,
    adapter_state,
    add_lora,
    is_adapted,
    merged_weights,
)
from dalle_ppo.models.dalle import linear
from dalle_ppo.models.dalle.adapted import adapted_decoder, copied_bytes, whole_decoder
from dalle_ppo.models.dalle.bart import BartDecoder, frozen_decoder
from dalle_ppo.models.dalle.family import FrozenParts
from dalle_ppo.models.dalle.sampling import sample
from dalle_ppo.models.precision import narrow
from dalle_ppo.rl.noise import noise_keys
from dalle_ppo.runs.checkpoints import load_checkpoint
from dalle_ppo.training import memory

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")

LORA = changed(TINY_CONFIG, {"actor.adapter": "lora", "critic.adapter": "lora"})
TWICE = changed(LORA, {"update.epochs": 2})  # a critic's adapters move only after its head, which starts at 0
ENDINGS = {
    "cross_keys_values": {"encoder_attn.k_proj", "encoder_attn.v_proj"},
    "cross_attention": {f"encoder_attn.{part}_proj" for part in ("k", "v", "q", "out")},
    "all": {f"{attn}_attn.{part}_proj" for attn in ("self", "encoder") for part in ("k", "v", "q", "out")}
    | {"glu.fc0", "glu.fc1", "glu.fc2"},
}


def stir(module: torch.nn.Module, size: float = 0.3) -> torch.nn.Module:
    """Fills the adapters with noise: untrained ones change nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return module


def iterated(config, times: int = 2):
    trainer = tiny_trainer(config)
    return trainer, [trainer.iterate(NoWriter()) for _ in range(times)]


def storages(module: torch.nn.Module, trained: bool) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in module.parameters() if p.requires_grad == trained}


def hidden(decoder, dtype: torch.dtype = torch.float32):
    encoder, _ = tiny_bart(dtype=dtype)
    return decoder(image_tokens(4), decoder.cross_states(encoder(captions(4, 7))))


def test_networks_share_one_body_and_start_as_the_reference():
    trainer, (first, second) = iterated(LORA)
    networks = trainer.networks
    body = storages(networks.reference, trained=False)
    for network in (networks.actor, networks.critic.trunk):
        assert storages(network, trained=False) <= body, "not one tensor is copied"
        assert not storages(network, trained=True) & body
    assert first["kl"] == first["kl_k1"] == first["kl_k3"] == 0.0, "bit for bit"
    assert first["ratio_first_minibatch_max_deviation"] == 0.0
    assert second["kl"] > 1e-3, "it learns"
    assert second["reference_changes"] == 0


@pytest.mark.parametrize("which", ENDINGS)
def test_which_matrices_get_adapters(which):
    actor = tiny_trainer(changed(LORA, {"actor.trainable": which})).actor.module
    trained = {name for name, p in actor.named_parameters() if p.requires_grad}
    expected = {
        f"layers.{layer}.{ending}.lora_{factor}.default.weight"
        for layer in range(TINY.num_layers)
        for ending in ENDINGS[which]
        for factor in "AB"
    }
    assert trained == expected, "the head, norms and embeddings have none"


def test_the_critic_trains_its_adapters_and_its_whole_head():
    trainer, _ = iterated(LORA, 1)
    critic = trainer.networks.critic
    trained = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {"value_head.weight", "value_head.bias"}
    assert float(critic.value_head.weight.detach().abs().max()) > 0
    moved = [p for name, p in critic.named_parameters() if ".lora_B." in name]
    assert all(float(p.detach().abs().max()) > 0 for p in moved)


@torch.no_grad()
def test_with_adapters_off_the_actor_is_the_reference():
    _, reference = tiny_bart()
    actor = stir(adapted_decoder(reference, Lora(3, 5.0), lambda name: True))
    on = hidden(actor)
    for part in actor.modules():
        if isinstance(part, peft.tuners.lora.LoraLayer):
            part.enable_adapters(False)
    assert not torch.allclose(on, hidden(reference), atol=1e-2)
    assert torch.equal(hidden(actor), hidden(reference))


def test_peft_loads_what_a_checkpoint_holds_and_merges_it_as_we_do(tmp_path):
    trainer, _ = iterated(changed(LORA, {"actor.lora_rank": 2, "actor.lora_alpha": 6.0}), 1)
    trainer.run_dir = tmp_path
    folder = trainer.save()
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names and "policy.safetensors" not in names
    _, body = tiny_bart()
    theirs = peft.PeftModel.from_pretrained(body, folder)
    with torch.no_grad():
        assert torch.equal(hidden(theirs.base_model.model), hidden(trainer.actor.module))
    merged = theirs.merge_and_unload().state_dict()
    ours = merged_weights(trainer.actor.module)
    assert merged.keys() == ours.keys()
    assert all(torch.equal(ours[name], merged[name]) for name in ours)


@pytest.mark.parametrize("guidance", [1.0, 16.0])
@pytest.mark.parametrize("large", [False, True])
def test_what_is_sampled_and_what_is_trained_are_one_policy(guidance, large, monkeypatch):
    """With adapters that are not zero; also where products are those of large weights."""
    if large:
        monkeypatch.setattr(linear, "LARGE_WEIGHT", 1)
    trainer = tiny_trainer(changed(LORA, {"policy.guidance": guidance, "kl.max_kl": 1e4}))
    stir(trainer.actor.module)
    metrics = trainer.iterate(NoWriter())
    assert metrics["kl"] > 0.1, "the adapters matter"
    assert metrics["sampler_log_prob_gap"] < 2e-6 * guidance
    assert metrics["ratio_first_minibatch_max_deviation"] < 1e-3


def test_a_snapshot_without_the_adapters_would_be_seen(monkeypatch):
    trainer = tiny_trainer(LORA)
    stir(trainer.actor.module)
    networks = trainer.networks
    monkeypatch.setattr(type(networks.family), "sampler_weights", lambda *args: networks.reference)
    assert trainer.iterate(NoWriter())["sampler_log_prob_gap"] > 0.05


def test_adapters_are_never_sampled_with_directly():
    trainer = tiny_trainer(LORA)
    prompts, _ = trainer.family.read(["a boat"])
    keys = noise_keys(0, "rollout", 0, ["a"], [0])
    with pytest.raises(TypeError, match="sampler_weights"):
        sample(trainer.actor.module, prompts, keys, trainer.config.policy)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_snapshot_holds_the_merged_weights(dtype):
    _, reference = tiny_bart()
    actor = stir(adapted_decoder(reference, Lora(3, 5.0), lambda name: True))
    kind = getattr(torch, dtype)
    family = tiny_trainer(LORA).family
    whole, half = (family.sampler_weights(actor, d).state_dict() for d in ("float32", dtype))
    for name, tensor in whole.items():
        expected = tensor if name.startswith("lm_head.") else tensor.to(kind)
        assert torch.equal(half[name], expected), name
    assert not torch.equal(whole["layers.0.glu.fc2.weight"], reference.layers[0].glu.fc2.weight)


def test_a_resumed_run_continues_exactly(tmp_path):
    config = changed(LORA, {"update.dtype": "bfloat16", "model.frozen_dtype": "bfloat16"})
    whole, metrics = iterated(config)
    begun, _ = iterated(config, 1)
    begun.run_dir = tmp_path
    resumed = tiny_trainer(config)
    resumed.load(load_checkpoint(begun.save()))
    again = [resumed.iterate(NoWriter())]
    for expected, found in zip(metrics[1:], again, strict=True):
        for name in (
            "reward_mean",
            "kl",
            "policy_loss",
            "value_loss",
            "gradient_norm",
            "critic_gradient_norm",
        ):
            assert found[name] == expected[name], name
    for name in ("actor", "critic"):
        ours, theirs = (adapter_state(getattr(trainer, name).module) for trainer in (resumed, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
    """The checkpoint of an untrained run, with adapters or without."""

    @cache
    def saved(adapter: str):
        config = changed(LORA, {"actor.adapter": adapter, "critic.adapter": adapter})
        trainer = tiny_trainer(config, tmp_path_factory.mktemp(adapter))
        return load_checkpoint(trainer.save())

    return saved


@pytest.mark.parametrize(
    "saved, now, words",
    [
        (
            "lora",
            {"actor.adapter": "none"},
            "actor.adapter is none, but the checkpoint was written with lora",
        ),
        (
            "none",
            {"actor.adapter": "lora"},
            "actor.adapter is lora, but the checkpoint was written with none",
        ),
        ("lora", {"critic.adapter": "none"}, "critic.adapter is none, but"),
        ("lora", {"actor.lora_rank": 4}, "actor.lora_rank is 4, but the checkpoint was written with 8"),
        ("lora", {"actor.lora_alpha": 8.0}, "actor.lora_alpha is 8, but"),
        ("lora", {"critic.lora_rank": 2}, "critic.lora_rank is 2, but"),
        (
            "lora",
            {"actor.trainable": "cross_keys_values"},
            "beside encoder_attn.k_proj, encoder_attn.out_proj",
        ),
    ],
)
def test_a_checkpoint_with_other_adapters_is_refused_in_one_line(saved, now, words, checkpoint_of):
    same = {"actor.adapter": saved, "critic.adapter": saved}
    trainer = tiny_trainer(changed(LORA, same | now))
    with pytest.raises(ValueError) as error:
        trainer.load(checkpoint_of(saved))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def usual() -> dict:
    return iterated(TWICE, 1)[1][0]


@pytest.mark.parametrize("change", [{"adapter": "none"}, {"lora_rank": 2}, {"lora_alpha": 1.0}])
def test_settings_of_adapters_matter(change, usual):
    """In the first iteration, before values are anything but 0, each loss depends on its own network only."""
    changes = {f"{section}.{n}": value for section in ("actor", "critic") for n, value in change.items()}
    _, (changed_ones,) = iterated(changed(TWICE, changes), 1)
    assert usual["policy_loss"] != changed_ones["policy_loss"]
    assert usual["value_loss"] != changed_ones["value_loss"]


def test_the_seed_decides_where_adapters_start_and_nothing_else_is_drawn():
    _, reference = tiny_bart()
    state = torch.get_rng_state()
    first, again, other = (
        adapter_state(adapted_decoder(reference, Lora(2, 2.0, seed), lambda name: True)) for seed in (3, 3, 4)
    )
    name = "base_model.model.layers.0.encoder_attn.k_proj.lora_A.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert torch.equal(torch.get_rng_state(), state)


def test_tied_weights_are_refused():
    """peft 0.21 adds the changes of both layers to the one weight when it merges them, without a warning."""
    _, decoder = tiny_bart()
    decoder.layers[1].glu.fc0.weight = decoder.layers[0].glu.fc0.weight
    with pytest.raises(ValueError, match=r"layers.0.glu.fc0 and layers.1.glu.fc0 share one weight"):
        add_lora(decoder, ["glu.fc0"], Lora(2, 2.0))


def test_merging_leaves_the_body_alone():
    _, reference = tiny_bart()
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    actor = stir(adapted_decoder(reference, Lora(2, 2.0), lambda name: True))
    first, second = merged_weights(actor), merged_weights(actor)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in reference.state_dict().items())
    assert not is_adapted(frozen_decoder(TINY, first))
    assert json.dumps(adapter_config(actor))


@pytest.mark.parametrize("adapted, narrowed", [(True, False), (False, True), (True, True), (False, False)])
def test_the_forecast_knows_what_the_sampler_copies(adapted, narrowed):
    decoder = tiny_bart()[1]
    if narrowed:
        narrow(decoder, torch.bfloat16)
    if adapted:
        add_lora(decoder, ["encoder_attn.k_proj", "encoder_attn.v_proj"], Lora(2, 4.0))
    own = {t.data_ptr() for t in decoder.state_dict().values()}
    whole = whole_decoder(decoder).state_dict() if adapted or narrowed else {}
    copied = {t.data_ptr(): t.numel() * t.element_size() for t in whole.values() if t.data_ptr() not in own}
    assert copied_bytes(decoder) == sum(copied.values())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("adapted", [("actor", "critic"), ("critic",), ("actor",)])
def test_the_forecast_counts_a_shared_body_once(device, adapted, monkeypatch):
    """The frozen body is the reference's; a network without adapters is a copy of its own."""
    monkeypatch.setattr(memory, "peak_bytes", lambda *_: 0)  # of activations, which takes seconds
    config = changed(TINY_CONFIG, {f"{name}.adapter": "lora" for name in adapted})
    with torch.device(device):
        decoder = tiny_bart()[1] if device == "cpu" else BartDecoder(TINY)
        model = LoadedModel(decoder, decoder, FrozenParts(None, None, None), None, None)
        networks = build_networks(config, model)
    weights = memory.predict_memory(config, networks, None, {"rewards": 8}).weights
    numbers = {name: value.numel() for name, value in tiny_bart()[1].state_dict().items()}
    body, head = 4 * sum(numbers.values()), 4 * numbers["lm_head.weight"]
    for name, copy in (("actor", body), ("critic", body - head + 4 * (TINY.width + 1))):
        module = getattr(networks, name)
        trained = 4 * sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert weights[name] == (trained if name in adapted else copy), name
    assert weights["reference"] == body and weights["rewards"] == 8
