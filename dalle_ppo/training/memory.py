"""Predicts the memory that a run needs at its worst, by part, before anything is trained."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from dalle_ppo.config.settings import Config
from dalle_ppo.models.dalle.adapted import copied_bytes
from dalle_ppo.models.dalle.blank import backward_without_head, blank_images
from dalle_ppo.models.dalle.memory_plan import MemoryPlan
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.eight_bit import state_bytes
from dalle_ppo.training.objective import find_objective, needs_exact_kl
from dalle_ppo.training.replay import buffer_bytes
from dalle_ppo.training.scoring import SAMPLES, Networks
from dalle_ppo.training.traced_memory import peak_bytes

PROCESS = 500_000_000
"""Bytes of a process that has imported everything, or of a context on a GPU. Measured: 0.4 to 0.6 GB."""


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes, by part.

    Args:
        weights: of each network, by name; those of a body that several share count for the reference.
        optimiser: statistics of the optimisers, by network.
        gradients: of the weights that are trained, by network.
        batch: what is kept of a batch's and the anchor's images.
        drawing: the sampler's caches, and decoding, which come one after the other.
        scoring: a microbatch without gradient.
        update: a microbatch of "actor" and "critic", with activations and all else but the logits.
        logits: what is on top of it in the actor's update.
        evaluation: copies of networks that draw in the evaluation, on top of what drawing needs.
        process: the rest.
    """

    weights: dict[str, int]
    optimiser: dict[str, int]
    gradients: dict[str, int]
    batch: int
    drawing: dict[str, int]
    scoring: int
    update: dict[str, int]
    logits: int
    evaluation: int = 0
    process: int = PROCESS

    @property
    def phases(self) -> dict[str, int]:
        """What each phase needs on top of what is always there."""
        update = {**self.update, "actor": self.update["actor"] + self.logits}
        return {
            "drawing": max(self.drawing.values(), default=0),
            "scoring": self.scoring,
            "update": sum(self.gradients.values()) + max(update.values()),
            "evaluation": max(self.drawing.values(), default=0) + self.evaluation,
        }

    @property
    def always(self) -> int:
        """Bytes that are there in every phase."""
        kept = sum(self.weights.values()) + sum(self.optimiser.values())
        return kept + self.batch + self.process

    @property
    def peak(self) -> int:
        """The most that is needed at a time."""
        return self.always + max(self.phases.values())

    def __str__(self) -> str:
        worst = max(self.phases, key=self.phases.get)
        update = {f"gradients of {name}": size for name, size in self.gradients.items()}
        update |= {f"activations of {name}": size for name, size in self.update.items()}
        update["logits"] = self.logits
        rows = {
            "weights": (sum(self.weights.values()), self.weights),
            "optimiser": (sum(self.optimiser.values()), self.optimiser),
            "kept images": (self.batch, {}),
            "process": (self.process, {}),
            "drawing": (self.phases["drawing"], self.drawing),
            "scoring": (self.scoring, {}),
            "update": (self.phases["update"], update),
            "evaluation": (self.phases["evaluation"], {}),
        }
        lines = [f"predicted peak of memory: {gb(self.peak)} GB, in {worst}"]
        for name, (size, parts) in rows.items():
            # A name and its number stay on one line.
            listed = ", ".join(
                f"{part} {gb(of_part)}".replace(" ", "\xa0") for part, of_part in parts.items()
            )
            line = f"  {name:<12}{gb(size):>7}  {listed}".rstrip()
            lines.append(textwrap.fill(line, 100, subsequent_indent=" " * 23).replace("\xa0", " "))
        return "\n".join(lines)


def gb(size: float) -> str:
    """Bytes as 10^9 bytes."""
    return f"{size / 1e9:.2f}"


def predict_memory(
    config: Config,
    networks: Networks,
    plan: MemoryPlan | None,
    others: Mapping[str, int] | None = None,
    processes: int = 1,
) -> MemoryForecast:
    """The memory of a run, in each of its processes.

    Args:
        config: all settings.
        networks: on any device, "meta" included; what is trained is what has `requires_grad`.
        plan: how images are drawn; None leaves drawing out.
        others: bytes of further networks, by name, such as the reward's.
        processes: how many there are; with `update.shard` full they hold networks in parts.
    """
    learned = {"actor": networks.actor, "critic": networks.critic}
    learned = {name: module for name, module in learned.items() if module is not None}
    trained = {name: [p for p in m.parameters() if p.requires_grad] for name, m in learned.items()}
    frozen = frozen_of(networks)
    own = own_bytes({"reference": networks.reference, **learned, **frozen})
    weights = {name: own[name] for name in [*learned, "reference", *frozen]} | dict(others or {})
    activations, whole = _actor_bytes(config, networks, processes)
    update = {"actor": activations}
    if networks.critic is not None:
        update["critic"] = _critic_bytes(config, networks, processes)
    forecast = MemoryForecast(
        weights=weights,
        optimiser={n: state_bytes(p, getattr(config, n).optimizer) for n, p in trained.items()},
        gradients={n: sum(p.numel() * p.element_size() for p in ps) for n, ps in trained.items()},
        batch=_batch_bytes(config, networks),
        drawing={} if plan is None else _drawing_bytes(config, networks, plan),
        scoring=_scoring_bytes(config, networks, processes),
        update=update,
        logits=max(0, whole - activations),
        evaluation=copied_bytes(networks.reference) if plan is not None and config.evaluation.at_end else 0,
    )
    if config.update.shard == "full" and processes > 1:
        return _in_parts(forecast, config, networks, processes)
    return forecast


def _in_parts(forecast: MemoryForecast, config: Config, networks: Networks, processes: int) -> MemoryForecast:
    """The forecast for processes that hold networks in parts, and what each puts together for a while.

    In a pass, two layers and all that is in no layer are whole, one network at a time. Their gradients are,
    too. A whole copy of the actor draws; in the evaluation whole copies of actor and reference in float32,
    which stay while images are decoded.
    """
    reference, drawing, evaluation = networks.reference, dict(forecast.drawing), 0
    named = {"actor": networks.actor, "critic": networks.critic, "reference": reference}
    passing = {name: _passing(network) for name, network in named.items() if network is not None}
    own = {*forecast.gradients, "reference"}
    if "sampler" in drawing:
        drawing["sampler"] -= _sampler_copy(config, networks)
        without = max(drawing.values())
        drawing["sampler"] += _sampler_copy(config, networks, in_parts=True)
        if config.evaluation.at_end:
            copies = sum(4 * p.numel() for p in reference.parameters()) * 2
            evaluation = without + copies - max(drawing.values())
    return replace(
        forecast,
        weights={n: size // processes if n in own else size for n, size in forecast.weights.items()},
        optimiser={n: size // processes for n, size in forecast.optimiser.items()},
        gradients={n: size // processes for n, size in forecast.gradients.items()},
        drawing=drawing,
        scoring=forecast.scoring + max(passing.values()),
        update={n: size + 2 * passing[n] for n, size in forecast.update.items()},
        evaluation=evaluation,
    )


def _passing(network: nn.Module) -> int:
    """Bytes of two layers of a decoder or critic, and of all that is in no layer."""
    layers = [bytes_of(layer) for layer in getattr(network, "trunk", network).layers]
    return 2 * layers[0] + bytes_of(network) - sum(layers)


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return own_bytes({"": module})[""]


def own_bytes(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Bytes of each module's parameters and buffers, without what it shares with those before it.

    Networks with adapters have parameters of their own over one body's memory, also on "meta".
    """
    seen, sizes = set(), {}
    for name, module in modules.items():
        tensors = {place_of(t): t for t in [*module.parameters(), *module.buffers()]}
        sizes[name] = sum(t.numel() * t.element_size() for place, t in tensors.items() if place not in seen)
        seen |= tensors.keys()
    return sizes


def place_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Where a tensor's numbers are: its memory, and the place within it."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset()


def frozen_of(networks: Networks) -> dict[str, nn.Module]:
    """The parts that all networks share."""
    parts = networks.family.frozen() if networks.family.parts is not None else {}
    return {name: module for name, module in parts.items() if isinstance(module, nn.Module)}


def _images(networks: Networks, count: int) -> Experience:
    """Images without data; call it where tensors are fake."""
    return blank_images(networks.reference.config, networks.family.settings, count)


def _replayed(config: Config) -> int:
    """Earlier images that an iteration learns from again."""
    return config.objective_settings.replay_images if find_objective(config.objective).replays else 0


def _learned(config: Config, processes: int) -> int:
    """Images of the largest pass with a gradient in one process, as in `run_update`."""
    batch = config.rollout.rollout_batch_size + _replayed(config)
    count = min(config.update.minibatch_size or batch, batch)
    together = find_objective(config.objective).compares_images
    unit = config.rollout.samples_per_caption if together else 1  # images that stay in one process
    share = math.ceil(math.ceil(count / unit) / processes) * unit
    return min(config.update.microbatch_size, share, count)


def _scored(config: Config, processes: int) -> int:
    """Images of the largest pass without a gradient in one process: of a batch, replayed or samples.

    In bfloat16 a batch is scored in the microbatches that it is learned in, as in `scoring_order`.
    """
    update, objective = config.update, find_objective(config.objective)
    in_order = update.dtype != "float32" and (processes == 1 or not objective.compares_images)
    most = (in_order and update.minibatch_size) or math.inf
    count = min(most, max(config.rollout.rollout_batch_size, _replayed(config)))
    count = max(count, min(SAMPLES, config.evaluation.num_captions))
    return min(update.microbatch_size, math.ceil(count / processes))


def _actor_bytes(config: Config, networks: Networks, processes: int) -> tuple[int, int]:
    """The actor's update: activations alone, and with the logits; the largest pass, of images or anchor."""
    family, dtype = networks.family, getattr(torch, config.update.dtype)
    in_loss = needs_exact_kl(config, find_objective(config.objective))
    passes = {(_learned(config, processes), in_loss, bool(config.actor.entropy_coef))}
    if config.anchor.coef:
        share = math.ceil(config.anchor.minibatch_size / processes)
        passes.add((min(config.update.microbatch_size, share), True, config.anchor.temperature != 1.0))
    most = max(count for count, *_ in passes)

    def body(modules: list[nn.Module]) -> None:
        backward_without_head(modules[0], _images(networks, most), family.settings)

    def all_of_it(count: int, exact_kl: bool, entropy: bool, modules: list[nn.Module]) -> None:
        actor, reference = modules
        rows = _images(networks, count)
        if exact_kl:
            rows = replace(rows, reference_states=family.remember(reference, rows))
        scores = family.score(actor, rows, entropy=entropy, reference=reference if exact_kl else None)
        parts = (scores.log_probs, scores.kl, scores.entropy)
        sum(part.sum() for part in parts if part is not None).backward()

    used = [networks.actor, networks.reference]
    whole = max(peak_bytes(partial(all_of_it, *one), used, dtype) for one in passes)
    return peak_bytes(body, used[:1], dtype), whole


def _critic_bytes(config: Config, networks: Networks, processes: int) -> int:
    count = _learned(config, processes)

    def compute(modules: list[nn.Module]) -> None:
        networks.family.values(modules[0], _images(networks, count)).sum().backward()

    return peak_bytes(compute, [networks.critic], getattr(torch, config.update.dtype))


def _scoring_bytes(config: Config, networks: Networks, processes: int) -> int:
    """What `scoring.score_passes` does with a microbatch."""
    family, count = networks.family, _scored(config, processes)

    @torch.no_grad()
    def compute(modules: list[nn.Module]) -> None:
        actor, reference, *critic = modules
        rows = _images(networks, count)
        rows = replace(rows, reference_states=family.remember(reference, rows))
        scores = family.score(actor, rows, entropy=True, reference=reference)
        for network in critic:
            scores = scores, family.values(network, rows)

    used = [networks.actor, networks.reference, networks.critic]
    present = [module for module in used if module is not None]
    return peak_bytes(compute, present, getattr(torch, config.update.dtype))


def _batch_bytes(config: Config, networks: Networks) -> int:
    """Images, stored codes and, for an exact KL in the loss, the reference's states.

    Where images are replayed, an update learns from a copy of the batch with the replayed ones added.
    """
    settings, sizes = networks.family.settings, networks.reference.config
    batch, replayed = config.rollout.rollout_batch_size, _replayed(config)
    count = 2 * batch + replayed if replayed else batch
    in_loss = needs_exact_kl(config, find_objective(config.objective))
    states = 4 * sizes.width * (2 if settings.guided else 1)
    per_token = 2 * min(settings.top_k or 0, sizes.num_codes) + 8 * 8
    learned = count * sizes.num_image_tokens * (per_token + (states if in_loss else 0))
    anchored = config.anchor.num_images if config.anchor.coef else 0
    kept = buffer_bytes(config, sizes.num_image_tokens, sizes.num_codes)
    return learned + kept + anchored * sizes.num_image_tokens * (per_token + states)


def _sampler_copy(config: Config, networks: Networks, in_parts: bool = False) -> int:
    """What the sampler has of the actor in copies: of an actor in parts everything, else what differs."""
    named = list(networks.actor.named_parameters())
    if config.rollout.dtype == "bfloat16":
        return sum((4 * in_parts if "lm_head" in name else 2) * p.numel() for name, p in named)
    return sum(4 * p.numel() for _, p in named) if in_parts else copied_bytes(networks.actor)


def _drawing_bytes(config: Config, networks: Networks, plan: MemoryPlan) -> dict[str, int]:
    caches = plan.batch_size * plan.image_bytes + plan.weight_bytes
    return {
        "sampler": caches + _sampler_copy(config, networks) + plan.kept_bytes,
        "decoding": plan.microbatch_size * plan.pixel_bytes + plan.kept_bytes,
    }
