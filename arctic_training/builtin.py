"""The modules of the built-in classes that a recipe can name, by kind and name."""

_MODULES = {
    "callback": {
        "callback.{}": "early_stopping ema kill_switch learning_rate_finder loss_spike memory_profiler nan_guard "
        "profiler restore_best sample_generation sample_tensors time_limit visualization",
        "callback.reduce_lr": "reduce_lr_on_instability reduce_lr_on_plateau",
        "objectives.sample_rollouts": "sample_rollouts",
    },
    "checkpoint_engine": {"checkpoint.{}": "deepspeed huggingface"},
    "data_factory": {
        "data.factories.{}": "causal dpo gan labeled_text pair preference prompt seq2seq sft tensor "
        "unpaired_preference",
    },
    "data_source": {
        "data.sources.huggingface": "HuggingFaceH4/ultrafeedback_binarized ProjectGutenbergSFT huggingface_causal",
        "data.sources.text": "csv",
        "data.sources.{}": "generator huggingface images passed text",
        "data.sources.instruct": "huggingface_instruct",
        "data.sources.files": "json jsonl parquet",
        "data.sources.passed": "passed_tensors",
        "data.sources.tensor": "tensor_file",
    },
    "evaluator": {"evaluation.{}": "generate lm_eval torchmetrics"},
    "generator": {
        "symbolic.sums": "cumulative_sums",
        "symbolic.factorization": "integer_factorization",
        "symbolic.polynomial_tasks": "polynomial_addition polynomial_reduction",
    },
    "model_factory": {
        "model.autoencoder_factory": "autoencoder",
        "model.conv_factory": "conv conv_decoder",
        "model.diffusers_factory": "diffusers",
        "model.huggingface_factory": "huggingface",
        "model.liger_factory": "liger",
        "model.mlp_factory": "mlp",
        "model.passed_factory": "passed passed_module",
        "model.time_mlp_factory": "time_mlp",
        "model.unet_factory": "unet",
        "model.zuko_factory": "zuko",
    },
    "model_transform": {"model.transforms.{}": "activation_checkpointing compile peft tiled_mlp"},
    "optimizer_factory": {
        "optimizer.huggingface_factories": "adafactor",
        "optimizer.{}": "adagrad lamb lion schedule_free",
        "optimizer.torch_factories": "adam adamw nadam radam rmsprop sgd",
        "optimizer.deepspeed_factories": "cpu_adam fused_adam muon",
    },
    "reward": {
        "reward.{}": "constant model",
        "reward.reward": "ended length score",
    },
    "row_transform": {"data.transforms.builtin": "expand_polynomials last_element reverse"},
    "scheduler_factory": {
        "scheduler.torch_factories": "constant exponential one_cycle wsd",
        "scheduler.piecewise_factories": "cyclic multistep step",
        "scheduler.huggingface_factory": "huggingface",
    },
    "scorer": {
        "evaluation.scorer": "contains exact_match numeric regex",
        "evaluation.{}": "judge torchmetrics",
        "evaluation.math_scorer": "math",
        "evaluation.polynomial_scorer": "polynomial_equal",
    },
    "tokenizer_factory": {
        "tokenizer.huggingface_factory": "huggingface",
        "tokenizer.lexer_factory": "lexer",
        "tokenizer.factory": "none",
        "tokenizer.passed_factory": "passed",
    },
    "tracker": {"tracker.{}": "console curves jsonl mlflow swanlab tensorboard trackio wandb"},
    "trainer": {
        "objectives.{}": "autoregressive causal classifier diffusion distill dpo embedding energy flow gan grpo kto "
        "ppo reinforce reward seq2seq sft vae",
        "objectives.classifier": "tensor_classifier",
    },
}
"""The names of each kind by their modules; where a module is called as its class, ``{}`` stands for the name."""

BUILTIN: dict[str, dict[str, str]] = {
    kind: {name: module.format(name) for module, names in modules.items() for name in names.split()}
    for kind, modules in _MODULES.items()
}
