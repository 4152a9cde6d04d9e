"""What became of the settings of earlier versions."""

RENAMED = {
    "ppo.learning_rate": "actor.learning_rate",
    "ppo.warmup_iterations": "actor.warmup_iterations",
    "ppo.schedule": "actor.schedule",
    "ppo.trainable": "actor.trainable",
    "ppo.max_grad_norm": "actor.max_grad_norm",
    "ppo.weight_decay": "actor.weight_decay",
    "ppo.adam_eps": "actor.adam_eps",
    "ppo.entropy_coef": "actor.entropy_coef",
    "ppo.min_entropy": "actor.min_entropy",
    "ppo.epochs": "update.epochs",
    "ppo.minibatch_size": "update.minibatch_size",
    "ppo.microbatch_size": "update.microbatch_size",
    "ppo.recompute_log_probs": "update.recompute_log_probs",
    "ppo.importance_cap": "update.importance_cap",
    "ppo.target_kl": "update.target_kl",
    "ppo.bad_step": "update.bad_step",
    "ppo.advantage": "credit.advantage",
    "ppo.gae_lambda": "credit.gae_lambda",
    "ppo.whiten_advantages": "credit.whiten_advantages",
    "ppo.advantage_clip": "credit.advantage_clip",
    "ppo.normalise_scores": "credit.normalise_scores",
    "ppo.prompt_buffer_size": "credit.prompt_buffer_size",
    "ppo.prompt_min_count": "credit.prompt_min_count",
    "ppo.objective": "objective, with the values ppo (was clip) and reinforce (was score_function)",
    "reward.detector": "detector of the term nsfw in reward.terms",
    "reward.unsafe_threshold": "unsafe_threshold of the term nsfw in reward.terms",
    "reward.unsure_threshold": "unsure_threshold of the term nsfw in reward.terms",
    "reward.unsafe_penalty": "unsafe_penalty of the term nsfw in reward.terms",
    "reward.unsure_penalty": "unsure_penalty of the term nsfw in reward.terms",
    "reward.clean_threshold": "clean_threshold of the term nsfw in reward.terms",
    "reward.clean_bonus": "clean_bonus of the term nsfw in reward.terms",
    "reward.clip_weight": "weight of the term clip_similarity in reward.terms",
    "reward.extra": "reward.terms, with {name, weight} for each {call, weight}",
}
"""What replaces each old setting."""

CONSTANTS = {"ppo.gamma": "1", "ppo.max_log_ratio": "20", "kl.error_clip": "0.2"}
"""Old settings that nobody had a reason to change, with the constants that replace them."""


def explain_old(name: str) -> str | None:
    """One line about a setting of an earlier version; None for a name that never was a setting."""
    if name in RENAMED:
        return f"setting {name} is now {RENAMED[name]}"
    if name in CONSTANTS:
        return f"setting {name} is now a constant, {CONSTANTS[name]}: leave it out"
    return None
