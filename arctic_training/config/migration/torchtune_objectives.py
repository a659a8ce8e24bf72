"""Objectives of torchtune's configurations: losses, rewards, and models beside the trained one."""

from arctic_training.config.migration.foreign import Foreign, integer
from arctic_training.config.migration.sections import mapping, put_rewards
from arctic_training.config.migration.torchtune_values import component, folder_of


def migrate_objective(foreign: Foreign, kind: str) -> None:
    """Carries over the loss of the trainer ``kind``, its rewards and its other models."""
    loss = foreign.section("loss")
    loss.ignore(["_component_", "num_output_chunks", "ignore_index"])
    if kind == "dpo":
        hinge = component(foreign.values.get("loss")) == "RSOLoss"
        foreign.put("loss_type", "hinge" if hinge else None)
        foreign.put("beta", loss.number("gamma" if hinge else "beta") or 0.1)
        foreign.put("label_smoothing", loss.number("label_smoothing") or None)
    elif kind == "grpo":
        foreign.put("num_generations", max(2, integer(foreign.number("grpo_samples")) or 2))
        foreign.move({"ppo_epochs": "num_iterations", "max_generated_tokens": "max_new_tokens"})
        foreign.move({"temperature": "temperature", "top_k": "top_k"})
        loss.move({"kl_coeff": "beta", "epsilon": "clip_low"})
        put_rewards(foreign, foreign.take("reward_functions"), None)
    elif kind == "distill":
        foreign.put("teacher", {"name_or_path": folder_of(foreign, "teacher_checkpointer") or "teacher"})
        ratio = foreign.number("kd_ratio")
        ratio = 0.5 if ratio is None else ratio
        foreign.put("ce_weight", round((1 - ratio) / ratio, 6) if ratio else 1.0)
        foreign.note(
            "kd_ratio", "ce_weight is the weight of the cross-entropy beside that of the divergence, which is 1"
        )
        foreign.ignore(["teacher_model", "kd_loss"])
    elif kind == "ppo":
        reward = folder_of(foreign, "reward_checkpointer") or "reward_model"
        foreign.put("rewards", [{"type": "model", "name_or_path": reward}])
        value = folder_of(foreign, "value_checkpointer")
        foreign.put("critic", {"name_or_path": value} if value else {"new_weights": ["score"]})
        foreign.move({"ppo_epochs": "num_iterations", "max_generated_tokens": "max_new_tokens", "gamma": "gamma"})
        foreign.move({"lmbda": "gae_lambda", "temperature": "temperature", "top_k": "top_k", "kl_coeff": "beta"})
        loss.move({"epsilon": "clip_low", "value_coeff": "vf_coefficient", "value_clip_range": "value_clip"})
        foreign.ignore(["reward_and_value_model", "policy_model"])
    for key in ("ref_checkpointer", "reference_checkpointer", "ref_policy_checkpointer"):
        reference = folder_of(foreign, key)
        is_other = reference and reference != mapping(foreign.recipe["model"]).get("name_or_path")
        if is_other and kind in ("dpo", "ppo", "grpo"):
            foreign.put("ref_model", {"name_or_path": reference})
