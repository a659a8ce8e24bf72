"""Words of other trainers' configurations, and the keys here that mean the same.

The words are those of transformers and TRL, axolotl, LLaMA-Factory, torchtune, Lightning and libraries of reinforcement
learning.
"""

from collections.abc import Mapping

_SAME = {
    "type": "rl stage",
    "output_dir": "out_dir save_dir output_path",
    "resume": "resume_from_checkpoint resume_from",
    "epochs": "num_train_epochs num_epochs max_epochs total_epochs",
    "train_iters": "max_steps max_train_steps total_steps num_training_steps",
    "epoch_length": "steps_per_epoch max_steps_per_epoch limit_train_batches",
    "micro_batch_size": "per_device_train_batch_size per_device_eval_batch_size per_gpu_train_batch_size "
    "train_batch_size eval_batch_size batch_size",
    "gradient_accumulation_steps": "gradient_accumulation grad_accum_steps",
    "sequence_parallel_size": "sequence_parallel_degree context_parallel_size sp_size",
    "mesh": "mesh_shape device_mesh mesh_dim_names",
    "mesh.model": "tensor_parallel_size tensor_parallel_dim tp_size",
    "max_grad_norm": "clip_grad_norm gradient_clipping grad_clip gradient_clip_val",
    "gradient_clip_value": "clip_grad_value clip_value clipvalue max_grad_value",
    "eval_interval": "eval_steps evals_per_epoch run_val_every_n_steps eval_strategy evaluation_strategy "
    "val_interval val_check_interval validation_interval",
    "evaluate_first": "eval_on_start",
    "loss_log_interval": "logging_steps log_every_n_steps log_interval",
    "logger.output_dir": "logging_dir log_dir",
    "logger.level": "log_level",
    "trackers": "report_to metric_logger log_with",
    "wandb.project": "wandb_project",
    "wandb.entity": "wandb_entity",
    "wandb.name": "run_name wandb_name wandb_run_name",
    "wandb.enable": "use_wandb",
    "model.name_or_path": "base_model base_model_config model_name_or_path model_name model_id model_path "
    "pretrained_model_name_or_path",
    "model.dtype": "torch_dtype",
    "model.dtype: bf16": "bf16 bf16_full_eval pure_bf16",
    "model.dtype: fp16": "fp16",
    "model.attn_implementation": "flash_attention flash_attn sdp_attention eager_attention xformers_attention "
    "use_flash_attention_2",
    "model.activation_checkpointing": "gradient_checkpointing enable_activation_checkpointing",
    "model.compile": "torch_compile",
    "model.type: liger": "use_liger_kernel enable_liger_kernel use_liger",
    "model.hf_config_kwargs": "model_init_kwargs model_kwargs rope_scaling",
    "model.resize_vocabulary": "resize_vocab",
    "model.peft_config": "adapter finetuning_type use_peft use_lora peft lora_config",
    "model.peft_config.r": "lora_r lora_rank",
    "model.peft_config.lora_alpha": "lora_alpha",
    "model.peft_config.lora_dropout": "lora_dropout",
    "model.peft_config.target_modules": "lora_target_modules lora_target lora_target_linear lora_attn_modules",
    "model.peft_config.modules_to_save": "lora_modules_to_save additional_target",
    "model.peft_config.use_dora": "use_dora peft_use_dora",
    "model.peft_config.use_rslora": "use_rslora peft_use_rslora",
    "tokenizer.name_or_path": "tokenizer_name_or_path tokenizer_name tokenizer_config tokenizer_path",
    "tokenizer.chat_template": "chat_template template chat_template_path chat_template_jinja",
    "data.sources": "dataset datasets dataset_name dataset_path dataset_dir data_path data_files train_file "
    "train_dataset pretraining_dataset",
    "data.sources.0.column": "dataset_text_field text_column field_text",
    "data.sources.0.role_mapping": "field_messages message_property_mappings",
    "data.sources.0.streaming": "streaming",
    "data.sources.0.sample_count": "max_samples max_train_samples",
    "data.eval_sources": "eval_dataset test_datasets val_dataset validation_file",
    "data.train_eval_split": "val_set_size val_size validation_split test_size",
    "data.max_length": "max_seq_length max_seq_len sequence_len cutoff_len model_max_length max_length block_size",
    "data.max_prompt_length": "max_prompt_length",
    "data.pack_samples": "packing sample_packing packed neat_packing",
    "data.mask_inputs": "train_on_inputs train_on_input train_on_prompt completion_only_loss assistant_only_loss",
    "data.mask_history": "train_on_last_turn_only",
    "data.num_proc": "dataset_num_proc preprocessing_num_workers dataset_processes",
    "data.dl_num_workers": "dataloader_num_workers num_workers",
    "data.drop_last": "dataloader_drop_last",
    "data.seed": "data_seed",
    "data.cache_dir": "dataset_prepared_path tokenized_path",
    "optimizer.learning_rate": "learning_rate lr",
    "optimizer.weight_decay": "weight_decay",
    "optimizer.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "optimizer.eps": "adam_epsilon epsilon",
    "optimizer.type": "optim optimizer_type optimizer_name",
    "scheduler.name": "lr_scheduler_type lr_scheduler scheduler_type",
    "scheduler.scheduler_specific_kwargs": "lr_scheduler_kwargs lr_scheduler_args",
    "scheduler.interval": "lr_scheduler_interval scheduler_interval",
    "scheduler.warmup_steps": "warmup_steps num_warmup_steps lr_warmup_steps",
    "scheduler.warmup_ratio": "warmup_ratio lr_warmup_ratio",
    "scheduler.min_lr": "min_lr min_learning_rate cosine_min_lr cosine_min_lr_ratio min_lr_rate lr_min eta_min",
    "checkpoint": "checkpointer",
    "checkpoint.save_every_n_steps": "save_steps saves_per_epoch save_strategy save_interval save_every_n",
    "checkpoint.save_end_of_training": "save_final",
    "checkpoint.keep_last": "save_total_limit keep_last_n_checkpoints save_last_k",
    "checkpoint.keep_best": "load_best_model_at_end",
    "checkpoint.best_metric": "metric_for_best_model metric_monitor",
    "checkpoint.best_mode": "greater_is_better",
    "checkpoint.trainable_only": "trainable_only save_trainable_only save_trainable_weights",
    "checkpoint.auto_resume": "auto_resume_from_checkpoints auto_resume",
    "checkpoint.type: huggingface": "save_safetensors save_only_model",
    "deepspeed.zero_optimization.stage: 3": "fsdp fsdp_config fsdp_version",
    "beta": "pref_beta rl_beta dpo_beta kl_coef kl_coeff",
    "loss_type": "pref_loss dpo_loss",
    "loss_type: cpo": "reference_free",
    "entropy_coefficient": "entropy_coeff entropy_coef ent_coef",
    "vf_coefficient": "vf_coeff vf_coef value_coef value_loss_coef",
    "gp_weight": "gradient_penalty_weight lambda_gp gp_lambda gp_coef",
    "replay_size": "replay_buffer replay_buffer_size",
    "ref_model": "ref_model_name_or_path reference_model",
    "teacher": "teacher_model_name_or_path teacher_model",
    "rewards": "reward_funcs reward_model reward_model_path",
    "max_new_tokens": "max_completion_length response_length",
}
"""Words of others by the key that means the same, with a value where that is what the word says."""

_ABSENT = {
    "weights are not quantized here; model.peft_config trains an adapter on weights in model.dtype": "load_in_4bit "
    "load_in_8bit quantization_bit quantization_config quantization_method use_bnb bnb_4bit_compute_dtype "
    "bnb_4bit_quant_type qlora",
    "completions are generated by the model in training itself, in parts of generation_batch_size": "use_vllm "
    "vllm_mode vllm_gpu_memory_utilization vllm_server_host",
    "max_grad_norm clips the gradient by its norm, and gradient_clip_value by value": "gradient_clip_algorithm",
    "a schedule is followed at every step, or with scheduler.interval: epoch at every epoch": "lr_scheduler_frequency",
    "a run never overwrites another; checkpoint.auto_resume continues it, and output_dir is where another goes": (
        "overwrite_output_dir overwrite_cache"
    ),
}
"""Words of others for what is not here, by what is."""

_NAMES = {
    "trainer": {"pt": "causal", "pretrain": "causal", "cpt": "causal", "rm": "reward"},
    "optimizer_factory": {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "torch.optim.AdamW": "adamw",
        "torch.optim.Adam": "adam",
        "lion_32bit": "lion",
        "schedule_free_adamw": "schedule_free",
        "AdamWScheduleFree": "schedule_free",
    },
}
"""Names of components in other configurations, by kind, and their names here."""

SCHEDULES = [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]
"""Names of schedules that ``scheduler.name`` takes, and ``scheduler.type`` does not."""


def _by_word(table: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    return {word: f"{prefix}{answer}" for answer, words in table.items() for word in words.split()}


ANSWERS: Mapping[str, str] = {**_by_word(_SAME, "here this is "), **_by_word(_ABSENT)}
"""What to say of each word of others."""


def foreign_key(word: str) -> str:
    """Returns what to say of a key that is a word of another trainer's configuration; empty for any other."""
    return ANSWERS.get(word, "")


def foreign_name(kind: str, name: str) -> str:
    """Returns what to say of a name for a component of ``kind`` that only others have; empty for any other."""
    if kind == "scheduler_factory" and name in SCHEDULES:
        return f"here this is scheduler.name: {name}"
    known = _NAMES.get(kind, {}).get(name)
    return f"here this is type: {known}" if known else ""
