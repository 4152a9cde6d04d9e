"""Every setting of the algorithm changes what is learned, or is named here with the reason why not."""

import json
from dataclasses import fields
from functools import cache

import pytest
import torch
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo.config.objective import find_objective, objective_names
from dalle_ppo.config.sections import all_sections
from dalle_ppo.config.settings import Config

GROUPS = (
    "policy",
    "rollout",
    "reward",
    "credit",
    "actor",
    "update",
    *objective_names(),
    "kl",
    "anchor",
    "critic",
)
PER_PROMPT = {"credit.advantage": "per_prompt", "rollout.samples_per_caption": 4}
RWR, DPO, SFT = (
    {"objective": name, **find_objective(name).defaults} for name in ("rwr", "online_dpo", "dpok_sft")
)
DDPO = {"objective": "ddpo", **PER_PROMPT}
GRPO = {
    "objective": "grpo",
    "credit.advantage": "group",
    "credit.whiten_advantages": False,
    "rollout.samples_per_caption": 4,
}
# Only the detector's steps are left of the reward, so that some captions have no spread.
TWO_VALUES = {"reward.terms.clip_similarity.weight": 0.0}
DPOK = {"objective": "dpok", "dpok.replay_images": 8, "dpok.buffer_images": 8}
ANCHOR = {"anchor.coef": 1.0, "anchor.num_images": 12, "anchor.minibatch_size": 2}
NO_NUMBER = {"reward.terms": [{"name": "tiny_trainer:not_a_number"}]}

# Setting: another value than the default, and what must be set on both sides for it to matter.
CHANGES: dict[str, tuple[object, dict[str, object]]] = {
    "policy.guidance": (2.5, {}),
    "policy.temperature": (1.5, {}),
    "policy.top_k": (3, {}),
    "policy.start_token": (3, {}),
    "policy.detach_unconditional": (True, {}),
    "rollout.rollout_batch_size": (8, {}),
    "rollout.samples_per_caption": (2, {}),
    "rollout.dtype": ("bfloat16", {}),
    "reward.terms.nsfw.unsafe_threshold": (0.7, {}),
    "reward.terms.nsfw.unsure_threshold": (0.3, {}),
    "reward.terms.nsfw.unsafe_penalty": (-5.0, {}),
    "reward.terms.nsfw.unsure_penalty": (-1.0, {}),
    "reward.terms.nsfw.clean_threshold": (0.1, {"reward.terms.nsfw.clean_bonus": 3.0}),
    "reward.terms.nsfw.clean_bonus": (3.0, {"reward.terms.nsfw.clean_threshold": 0.1}),
    "reward.terms.nsfw.weight": (0.5, {}),
    "reward.terms.nsfw.only_if": ("clip_similarity > 0", {}),
    "reward.terms.clip_similarity.weight": (5.0, {}),
    "reward.terms.clip_similarity.only_if": (None, {}),
    "reward.terms.clip_similarity.logits": (True, {}),
    "reward.terms.clip_similarity.transform": ("sigmoid", {}),
    "reward.terms": ([{"name": "tiny_trainer:red", "weight": 10.0}], {}),
    "reward.bad_result": ("skip", NO_NUMBER),
    "reward.normalise": ("per_term", {"reward.terms.clip_similarity.only_if": None}),
    "actor.learning_rate": (0.02, {}),
    "actor.warmup_iterations": (3, {}),
    "actor.schedule": ("constant", {}),
    "update.epochs": (2, {}),
    "update.minibatch_size": (4, {}),
    "objective": ("reinforce", {"update.minibatch_size": None}),
    "credit.advantage": ("rloo", {"rollout.samples_per_caption": 2}),
    "credit.prompt_buffer_size": (3, PER_PROMPT | {"credit.prompt_min_count": 2}),
    "credit.prompt_min_count": (2, PER_PROMPT),
    "update.dtype": ("bfloat16", {}),
    "update.recompute_log_probs": (False, {}),
    "ppo.clip_range": (0.02, {}),
    "ppo.clip_range_high": (0.9, {}),
    "ppo.dual_clip": (1.21, {}),
    "rwr.temperature": (1.0, RWR),
    "rwr.per_prompt": (True, RWR | {"rollout.samples_per_caption": 4}),
    "rwr.sparse_percentile": (90.0, RWR),
    "online_dpo.beta": (1.0, DPO),
    "dpok_sft.form": ("data", SFT),
    "dpok_sft.gamma": (1.0, SFT),
    "dpok_sft.images_from": ("policy", SFT),
    "ddpo.clip_range": (0.02, DDPO),
    "grpo.divide_by_std": (False, GRPO),
    "grpo.leave_out_equal": (False, GRPO | TWO_VALUES),
    "grpo.ratio": ("image", GRPO),
    "grpo.clip_range": (0.02, GRPO),
    "grpo.clip_range_high": (0.02, GRPO),
    "dpok.max_ratio": (1.01, DPOK),
    "dpok.buffer_images": (16, DPOK),
    "dpok.replay_images": (4, DPOK),
    "credit.gae_lambda": (0.5, {}),
    "credit.whiten_advantages": (False, {}),
    "credit.advantage_clip": (0.5, {}),
    "credit.normalise_scores": (False, {}),
    "actor.entropy_coef": (0.1, {}),
    "actor.max_grad_norm": (0.01, {}),
    "update.target_kl": (1e-9, {"update.epochs": 2}),
    "update.importance_cap": (0.5, {}),
    "actor.weight_decay": (0.1, {}),
    "actor.adam_eps": (0.1, {}),
    "actor.trainable": ("cross_attention", {}),
    "actor.min_entropy": (1e4, {}),
    "kl.kl_coef": (1.0, {}),
    "kl.estimator": ("k2", {}),
    "kl.placement": ("reward", {"actor.entropy_coef": 0.0}),
    "kl.target": (1.0, {"actor.entropy_coef": 0.0}),
    "kl.horizon": (50, {"kl.target": 1.0, "actor.entropy_coef": 0.0}),
    "kl.max_kl": (1e-6, {}),
    "anchor.coef": (1.0, {}),
    "anchor.num_images": (8, ANCHOR),
    "anchor.minibatch_size": (4, ANCHOR),
    "anchor.temperature": (0.7, ANCHOR),
    "anchor.shares": ({"UNLIKELY": 0.0, "UNSURE": 0.0, "NSFW": 1.0}, ANCHOR),
    "critic.learning_rate": (0.01, {}),
    "critic.max_grad_norm": (0.01, {}),
    "critic.warmup_iterations": (1, {}),
    "critic.value_clip": (1e-4, {}),
    "critic.weight_decay": (0.5, {}),
    "critic.adam_eps": (0.1, {}),
}
EXEMPT = {
    "reward.terms.nsfw.detector": "names a file; test_nsfw_detector.py reads several",
    "reward.terms.clip_similarity.model": "names a file; rewards/test_clip_terms.py reads several",
    "reward.terms.clip_similarity.pretrained": "names a file, as model does",
    "reward.terms.clip_similarity.quick_gelu": "of such a file; test_clip_terms.py needs it",
    "update.microbatch_size": "changes memory and nothing else, test_update.py holds that",
    "update.gradient_checkpointing": "changes memory and nothing else, test_low_memory.py holds that",
    "update.shard": "changes memory and nothing else, training/test_sharded.py holds that",
    "update.logits_chunk": "changes memory and nothing else, test_low_memory.py holds that",
    "actor.optimizer": "needs a GPU, test_eight_bit.py holds that it steps",
    "critic.optimizer": "needs a GPU, test_eight_bit.py holds that it steps",
    "rollout.memory_gb": "changes memory and nothing else, test_sampling.py holds that",
    **{
        f"{section}.{name}": "needs the extra lora; training/test_lora.py holds that it matters"
        for section in ("actor", "critic")
        for name in ("adapter", "lora_rank", "lora_alpha")
    },
    "update.bad_step": "matters where a step is not finite, see test_guards.py",
}
STOPS = ("actor.min_entropy", "kl.max_kl")
# A change that needs another one beside it.
TOGETHER = {"kl.placement": {"kl.estimator": "k1"}}


def settings_of_the_algorithm() -> list[str]:
    names = [f"{name}.{f.name}" for name, record in all_sections() if name in GROUPS for f in fields(record)]
    terms = Config().reward.terms
    of_terms = [f"reward.terms.{term['name']}.{key}" for term in terms for key in term if key != "name"]
    return ["objective", *names, *of_terms]


@cache
def outcome(settings: str) -> tuple | str:
    """What two iterations with these settings (JSON) leave: weights of actor and critic, and the policy loss.

    A run that stops leaves the reason.
    """
    config = changed(TINY_CONFIG, json.loads(settings))
    trainer = tiny_trainer(config)
    losses = []
    try:
        for _ in range(2):
            losses.append(trainer.iterate(NoWriter()).get("policy_loss"))
    except ValueError as error:
        return str(error)
    learners = [learner for learner in (trainer.actor, trainer.critic) if learner is not None]
    weights = [p.detach().flatten() for learner in learners for p in learner.module.parameters()]
    return losses, torch.cat(weights).numpy().tobytes()


def frozen(settings: dict[str, object]) -> str:
    return json.dumps(settings, sort_keys=True)


def test_no_setting_is_forgotten_here():
    assert sorted([*CHANGES, *EXEMPT]) == sorted(settings_of_the_algorithm())


def test_the_same_settings_have_the_same_outcome():
    first = outcome(frozen({}))
    outcome.cache_clear()
    assert outcome(frozen({})) == first and not isinstance(first, str)


@pytest.mark.filterwarnings("ignore:iteration .* left out")
@pytest.mark.parametrize("name", CHANGES)
def test_the_setting_matters(name):
    value, needed = CHANGES[name]
    config = changed(TINY_CONFIG, needed)
    change = {name: value} | TOGETHER.get(name, {})
    assert changed(config, change) != config, "the table's value is the one that is set anyway"
    before = outcome(frozen(needed))
    after = outcome(frozen(needed | change))
    assert before != after
    assert isinstance(after, str) == (name in STOPS), after


@pytest.mark.parametrize("name, value", [("actor.min_entropy", 1e-9), ("kl.max_kl", 1e9)])
def test_a_bound_that_is_not_met_changes_nothing(name, value):
    assert outcome(frozen({name: value})) == outcome(frozen({}))


def test_microbatches_do_not_matter():
    (loss, weights), (again, others) = outcome(frozen({})), outcome(frozen({"update.microbatch_size": 3}))
    weights, others = (torch.frombuffer(bytearray(x), dtype=torch.float32) for x in (weights, others))
    assert loss == pytest.approx(again, abs=1e-4)
    assert (weights - others).abs().max() < 1e-5 * weights.abs().max()
