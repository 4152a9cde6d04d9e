"""Decoders and critics that share a frozen body and train adapters only."""

from torch import nn

from dalle_ppo.models.adapters import Lora, add_lora, load_adapter, merged_weights
from dalle_ppo.models.dalle.bart import BartDecoder, frozen_decoder
from dalle_ppo.models.dalle.critic import Critic
from dalle_ppo.models.dalle.linear import Linear


def adapted_decoder(body: BartDecoder, lora: Lora, includes) -> BartDecoder:
    """A policy with LoRA that shares all weights of a frozen one, which is what it is with adapters off.

    Args:
        body: frozen; not copied and not changed.
        lora: size and seed of the adapters.
        includes: whether a parameter, given its name, gets an adapter if it is a matrix of a layer. The head
            gets none: it has 16 384 rows, and the policy's function reads its weight directly.
    """
    decoder = frozen_decoder(body.config, body.state_dict())
    add_lora(decoder, adapted_layers(decoder, includes), lora)
    return decoder


def adapted_critic(body: BartDecoder, lora: Lora) -> Critic:
    """A critic with LoRA beside every matrix of a body that it shares; its value head is trained whole."""
    critic = Critic(body, shared=True)
    add_lora(critic.trunk, adapted_layers(critic.trunk, lambda name: True), lora)
    return critic


def adapted_layers(decoder: BartDecoder, includes) -> list[str]:
    """Endings of the names of the linear layers that `includes` names, the same in every decoder layer."""
    return sorted(
        name
        for name, part in decoder.layers[0].named_modules()
        if isinstance(part, Linear) and includes(f"layers.0.{name}.weight")
    )


def merged_decoder(body: BartDecoder, tensors, config) -> BartDecoder:
    """A body with saved adapters merged into it, frozen, in the body's dtypes.

    Args:
        body: the decoder they were trained beside; it is not changed.
        tensors: from `adapters.adapter_state`.
        config: from `adapters.adapter_config`.
    """
    decoder = frozen_decoder(body.config, body.state_dict())
    add_lora(decoder, config["target_modules"], Lora(config["r"], config["lora_alpha"]))
    load_adapter(decoder, tensors, config, "actor")
    return frozen_decoder(body.config, merged_weights(decoder))


def is_narrow(decoder: nn.Module) -> bool:
    """Whether `precision.narrow` has made matrices narrower than the rest, which the sampler cannot use."""
    rest = decoder.embed_positions.weight.dtype
    return decoder.layers[0].self_attn.out_proj.weight.dtype.itemsize < rest.itemsize


def copied_bytes(decoder: BartDecoder) -> int:
    """Bytes of what `sampler_weights` copies of a decoder in float32: adapted and narrow matrices."""
    size = decoder.embed_positions.weight.dtype.itemsize
    adapted = {id(m.get_base_layer().weight) for m in decoder.modules() if hasattr(m, "lora_A")}
    left = (".lora_", "lm_head.")
    named = [(n, p) for n, p in decoder.named_parameters() if not any(part in n for part in left)]
    return sum(size * p.numel() for _, p in named if id(p) in adapted or p.dtype.itemsize < size)


def whole_decoder(decoder: BartDecoder) -> BartDecoder:
    """A frozen decoder in one dtype, with any adapters merged in, for the sampler to read."""
    dtype = decoder.embed_positions.weight.dtype
    weights = merged_weights(decoder, dtype)
    weights |= {n: value.to(dtype) for n, value in weights.items() if not n.startswith("lm_head.")}
    return frozen_decoder(decoder.config, weights)
