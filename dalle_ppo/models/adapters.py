"""LoRA through `peft`: small trained matrices beside frozen ones, which networks may share.

`peft` takes seconds to import, so that happens only where adapters are made.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"
PEFT_PREFIX = "base_model.model."
"""What peft's files put before the name of a parameter."""


@dataclass(frozen=True)
class Lora:
    """Size and start of the adapters of one network.

    Args:
        rank: columns of the two small matrices.
        alpha: their product counts alpha / rank times.
        seed: of the first factor's random start; the second one starts at zero.
    """

    rank: int
    alpha: float
    seed: int = 0


def add_lora(module: nn.Module, targets: Sequence[str], lora: Lora) -> None:
    """Freezes a network in place and puts adapters beside some of its matrices.

    The network computes what it did before, bit for bit, until the adapters are trained. Global random
    numbers stay as they were.

    Args:
        module: adapters are added to its linear layers.
        targets: endings of these layers' names, such as "encoder_attn.k_proj".
        lora: size and seed.

    Raises:
        ValueError: peft is missing, or two of the layers share a weight.
    """
    peft = import_peft()
    _refuse_tied(module, targets)
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=sorted(targets))
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, whatever the device
        torch.manual_seed(lora.seed)
        peft.inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for name, parameter in module.named_parameters():
        if ".lora_" in name:  # peft takes the dtype of the frozen weight, which may be too coarse to learn in
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def import_peft():
    """The package peft.

    Raises:
        ValueError: it is missing; names the extra that brings it.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            f"LoRA needs the package peft, which cannot be imported ({error}); install the extra lora: "
            "pip install -e '.[lora]', or set actor.adapter and critic.adapter to none"
        ) from error
    return peft


def is_adapted(module: nn.Module) -> bool:
    """Whether a network has adapters: then reading `.weight` of its layers would miss them."""
    return any(".lora_A." in name for name, _ in module.named_parameters())


def merged_weights(module: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A network's weights with the adapters added in, by the names it has without adapters.

    Args:
        module: with adapters or without; it is not changed, and what has no adapter is not copied.
        dtype: of the merged matrices; by default that of the frozen ones.
    """
    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }
    for name, part in module.named_modules():
        if hasattr(part, "lora_A"):
            base, change = part.get_base_layer().weight.detach(), part.get_delta_weight(ADAPTER).detach()
            weights[f"{name}.weight"] = (base.to(change.dtype) + change).to(dtype or base.dtype)
    return weights


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """What is trained of an adapted network, with the names that peft's files have."""
    return {
        PEFT_PREFIX + name.replace(f".{ADAPTER}.", "."): parameter.detach()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def adapter_config(module: nn.Module) -> dict[str, Any]:
    """The content of peft's adapter_config.json for an adapted network."""
    config = next(part.peft_config[ADAPTER] for part in module.modules() if hasattr(part, "peft_config"))
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))


def load_adapter(
    module: nn.Module, tensors: Mapping[str, Tensor], config: Mapping[str, Any], section: str
) -> None:
    """Fills an adapted network from what `adapter_state` and `adapter_config` saved.

    Args:
        module: with adapters; filled in place.
        tensors: from `adapter_state`.
        config: from `adapter_config`.
        section: of the settings, "actor" or "critic", for messages.

    Raises:
        ValueError: the adapters have another size or sit on other matrices.
    """
    own = adapter_config(module)
    for key, setting in (("r", "lora_rank"), ("lora_alpha", "lora_alpha")):
        if own[key] != config[key]:
            raise ValueError(
                f"{section}.{setting} is {own[key]:g}, but the checkpoint was written with {config[key]:g}; "
                "resume with the run's own value"
            )
    current = adapter_state(module)
    if {n: t.shape for n, t in current.items()} != {n: t.shape for n, t in tensors.items()}:
        raise ValueError(
            f"the checkpoint's {section} has adapters beside {_endings(tensors)}, the settings ask for "
            f"{_endings(current)}; resume with the run's own actor.trainable and model"
        )
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(tensors[name])


def _refuse_tied(module: nn.Module, targets: Sequence[str]) -> None:
    """Refuses layers that share a weight: merged, each would get the sum of all changes.

    peft 0.21 does not warn of it.
    """
    seen: dict[int, str] = {}
    for name, part in module.named_modules():
        if not any(name == target or name.endswith(f".{target}") for target in targets):
            continue
        first = seen.setdefault(part.weight.data_ptr(), name)
        if first != name and part.weight.device.type != "meta":
            raise ValueError(f"{first} and {name} share one weight; adapt only one of them, or untie them")


def _endings(tensors: Mapping[str, Tensor]) -> str:
    """Which kinds of matrices adapters sit beside: the last two parts of their names."""
    names = [name.partition(".lora_")[0] for name in tensors if ".lora_A." in name]
    return ", ".join(sorted({".".join(name.split(".")[-2:]) for name in names}))
