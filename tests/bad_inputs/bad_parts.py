"""Parts of a run that contradict one another, the model or the data."""

from pathlib import Path

import numpy as np

from tests import tiny
from tests.bad_inputs.case import Case, sft

VAE = (
    "type: vae\nmodel: {encoder: {type: mlp, sizes: [2,4,4]}, decoder: {type: mlp, "
    "sizes: [2,4,2]}}\ndata: {sources: [a.npy]}\n"
)
FLOW = "type: flow\nobjective: flow_matching\nmodel: {type: time_mlp, sizes: [2,8,2]}\ndata: {sources: [a.npy]}\n"
GRPO = "type: grpo\nrewards: [ended]\nmax_new_tokens: 4\nnum_generations: 2\nmicro_batch_size: 2\n" + sft()


def save_rows(at: Path) -> None:
    np.save(at, np.zeros((8, 2), np.float32))


CASES: dict[str, Case] = {
    "prompts without a tokenizer": Case(
        "recipe.yaml:4:1: callbacks: sample_generation needs a tokenizer, and this run has none",
        recipe=VAE + "callbacks: [{type: sample_generation, prompts: [a]}]\n",
        files={"a.npy": save_rows},
    ),
    "answers without a tokenizer": Case(
        "recipe.yaml:5:1: evaluators: 'generate' needs a tokenizer, and this run has none",
        recipe=(
            "type: vae\nmodel: {encoder: {type: mlp, sizes: [2,4,4]}, decoder: {type: mlp, "
            "sizes: [2,4,2]}}\ndata: {sources: [a.npy], eval_sources: [a.npy]}\neval_interval: "
            "1\nevaluators: [generate]\n"
        ),
        files={"a.npy": save_rows},
    ),
    "a merge of DoRA": Case(
        (
            "recipe.yaml:3:48: checkpoint.merge_adapter: only plain LoRA can be merged, and this "
            "has use_dora; set it to false"
        ),
        recipe=(
            "model: {name_or_path: model, dtype: fp32, peft_config: {peft_type: lora, use_dora: "
            "true}}\ndata: {sources: [rows.jsonl]}\ncheckpoint: {type: huggingface, "
            "merge_adapter: true}\n"
        ),
    ),
    "a base that no name loads": Case(
        (
            "recipe.yaml:3:47: checkpoint.trainable_only: below its adapter, model is not what "
            "model.name_or_path loads (weights); remove it"
        ),
        recipe=(
            "model: {name_or_path: model, dtype: fp32, random_weights: true, peft_config: {peft_type: lora}}\ndata: "
            "{sources: [rows.jsonl]}\ncheckpoint: {type: deepspeed, trainable_only: true}\n"
        ),
    ),
    "a merge of IA3": Case(
        (
            "recipe.yaml:3:48: checkpoint.merge_adapter: only plain LoRA can be merged, and this "
            "has IA3 is no sum of weights; set it to false"
        ),
        recipe=(
            "model: {name_or_path: model, dtype: fp32, peft_config: {peft_type: ia3}}\ndata: "
            "{sources: [rows.jsonl]}\ncheckpoint: {type: huggingface, merge_adapter: true}\n"
        ),
    ),
    "a resume from nowhere": Case(
        "recipe.yaml:3:9: resume: nowhere: no such folder", recipe=sft() + "resume: nowhere\n"
    ),
    "a resume from a folder": Case(
        cached=True,
        says="recipe.yaml:3:9: resume: {here}/d is neither a checkpoint nor a folder of them",
        recipe=sft() + "resume: d\n",
        files={"d/x": "y"},
    ),
    "compiled layers of shards": Case(
        (
            "recipe.yaml:1:52: model.compile: compiled layers do not gather the weights that "
            "ZeRO stage 3 partitions; use stage 2"
        ),
        recipe=(
            "model: {name_or_path: model, dtype: fp32, compile: true}\ndata: {sources: "
            "[rows.jsonl]}\ndeepspeed: {zero_optimization: {stage: 3}}\n"
        ),
    ),
    "new weights that there are not": Case(
        (
            "recipe.yaml:1:23: model.name_or_path: model: model.new_weights: LlamaForCausalLM "
            "has no nope; there are: embed_tokens, layers, lm_head, norm"
        ),
        recipe="model: {name_or_path: model, dtype: fp32, new_weights: [nope]}\ndata: {sources: [rows.jsonl]}\n",
    ),
    "a dtype in the config": Case(
        "recipe.yaml:1:75: model.hf_config_kwargs.torch_dtype: set model.dtype instead",
        recipe=(
            "model: {name_or_path: model, dtype: fp32, hf_config_kwargs: {torch_dtype: "
            "x}}\ndata: {sources: [rows.jsonl]}\n"
        ),
    ),
    "an adapter that names no base": Case(
        "recipe.yaml:1:23: model.name_or_path: ad: adapter_config.json is damaged, or names no base_model_name_or_path",
        recipe="model: {name_or_path: ad, dtype: fp32}\ndata: {sources: [rows.jsonl]}\n",
        files={"ad/adapter_config.json": "{}"},
    ),
    "an adapter of a missing base": Case(
        "recipe.yaml:1:23: model.name_or_path: ad: the base of the adapter, ./none: no such file or folder",
        recipe="model: {name_or_path: ad, dtype: fp32}\ndata: {sources: [rows.jsonl]}\n",
        files={"ad/adapter_config.json": '{"base_model_name_or_path": "./none", "peft_type":"LORA"}'},
    ),
    "labels without names": Case(
        (
            "recipe.yaml:2:23: model.name_or_path: model: model.labels: give the names of the "
            "labels, or model.num_labels; the model is a LlamaForCausalLM, which has none"
        ),
        recipe="type: classifier\n" + sft(),
        files={"rows.jsonl": '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'},
    ),
    "PiSSA of shards": Case(
        (
            "recipe.yaml:1:93: model.peft_config.init_lora_weights: pissa decomposes the "
            "weights, which ZeRO stage 3 has partitioned over the processes; use stage 2, or "
            "another init_lora_weights"
        ),
        recipe=(
            "model: {name_or_path: model, dtype: fp32, peft_config: {peft_type: lora, "
            "init_lora_weights: pissa}}\ndata: {sources: [rows.jsonl]}\ndeepspeed: "
            "{zero_optimization: {stage: 3}}\n"
        ),
    ),
    "a mixture of adapters": Case(
        (
            "recipe.yaml:1:68: model.peft_config.peft_type: XLORA mixes adapters that are "
            "trained already, which no recipe has; use another"
        ),
        recipe=(
            "model: {name_or_path: model, dtype: fp32, peft_config: {peft_type: xlora}}\ndata: "
            "{sources: [rows.jsonl]}\n"
        ),
    ),
    "two checkpoints in one folder": Case(
        "recipe.yaml:3:1: checkpoint: two sections save in one folder, {here}/c; give one of them another output_dir",
        recipe=sft() + "checkpoint: [{type: deepspeed, output_dir: c}, {type: huggingface, output_dir: c}]\n",
    ),
    "two trackers in one file": Case(
        "recipe.yaml: train_log_metrics_path: {here}/a is written by two trackers; remove one, or give it another file",
        recipe=sft() + "trackers: [{type: jsonl, path: a}, {type: jsonl, path: a}]\n",
    ),
    "a schedule beside a schedule-free optimizer": Case(
        (
            "recipe.yaml:4:1: scheduler: with optimizer.type schedule_free the learning rate may "
            "only warm up; give scheduler: {type: constant}"
        ),
        recipe=sft() + "optimizer: {type: schedule_free}\nscheduler: {name: cosine}\n",
    ),
    "a lowest rate above the highest": Case(
        "recipe.yaml:4:35: scheduler.min_lr: 0.001 is above the optimizer's learning rate, 1e-05; lower it",
        recipe=sft() + "optimizer: {lr: 1e-5}\nscheduler: {name: cosine, min_lr: 1e-3}\n",
    ),
    "a cycle of epochs": Case(
        "recipe.yaml:3:40: scheduler.interval: the cycle goes by step; remove it",
        recipe=sft() + "scheduler: {type: one_cycle, interval: epoch}\n",
    ),
    "rollouts that nobody generates": Case(
        "recipe.yaml:3:1: callbacks: sample_rollouts writes what grpo, reinforce and ppo generate; remove it",
        recipe=sft() + "callbacks: [sample_rollouts]\n",
    ),
    "labels that are not read": Case(
        "recipe.yaml:5:16: label_dropout: the network reads no labels; set model.num_labels, or remove it",
        recipe=FLOW + "label_dropout: 0.1\n",
        files={"a.npy": save_rows},
    ),
    "more tokens than the teacher has": Case(
        "recipe.yaml:2:16: teacher_top_k: 9999; the vocabulary has 320 tokens",
        recipe="type: distill\nteacher_top_k: 9999\nteacher: {name_or_path: model, dtype: fp32}\n" + sft(),
    ),
    "a teacher of another width": Case(
        (
            "recipe.yaml:2:16: hidden_weight: the hidden states of the teacher have 64 numbers, "
            "and those of the student 32; give a teacher of the same width, or remove it"
        ),
        recipe="type: distill\nhidden_weight: 1\nteacher: {name_or_path: t, dtype: fp32}\n" + sft(),
        files={"t": lambda at: tiny.save_model(at, hidden_size=64)},
    ),
    "no encoder-decoder": Case(
        "recipe.yaml:2:23: model.name_or_path: model: no sequence-to-sequence model of transformers has such a config",
        recipe="type: seq2seq\n" + sft(),
        files={"rows.jsonl": '{"source": "a", "target": "b"}\n'},
    ),
    "an encoder-decoder": Case(
        (
            "recipe.yaml:1:23: model.name_or_path: model: T5Config is of an encoder-decoder, "
            "which has no causal language model; give model.task: seq2seq_lm"
        ),
        recipe=sft(),
        files={"model": tiny.save_encoder_decoder},
    ),
    "a run that has saved nothing": Case(
        (
            "recipe.yaml:1:23: model.name_or_path: r: no complete checkpoint in it, and no "
            "model; name a model, an adapter, a checkpoint or a run"
        ),
        recipe="model: {name_or_path: r, dtype: fp32}\ndata: {sources: [rows.jsonl]}\n",
        files={"r/recipe.yaml": "type: sft\n", "r/environment.json": "{}"},
    ),
    "a column that there is not": Case(
        "rows.jsonl: data.extra_columns: no row has nope; there are messages",
        recipe="model: {name_or_path: model, dtype: fp32}\ndata: {sources: [rows.jsonl], extra_columns: [nope]}\n",
    ),
    "a stream without an end": Case(
        "recipe.yaml: train_iters: 0, and a stream has no end; give the number of steps, or epoch_length",
        recipe=(
            "model: {name_or_path: model, dtype: fp32}\ndata: {sources: [{name_or_path: "
            "rows.jsonl, streaming: true}]}\n"
        ),
    ),
    "a share of a stream": Case(
        "rows.jsonl: a stream has no length to take sample_ratio of; give sample_count or weight",
        recipe=(
            "model: {name_or_path: model, dtype: fp32}\ndata: {sources: [{name_or_path: "
            "rows.jsonl, streaming: true, sample_ratio: 0.5}]}\ntrain_iters: 2\n"
        ),
    ),
    "a stream to evaluate on": Case(
        cached=True,
        says="rows.jsonl: a stream to evaluate on needs a sample_count",
        recipe=(
            "model: {name_or_path: model, dtype: fp32}\ndata: {sources: [rows.jsonl], "
            "eval_sources: [{name_or_path: rows.jsonl, streaming: true}]}\neval_interval: 1\n"
        ),
    ),
    "two averages of weights": Case(
        (
            "recipe.yaml:5:1: callbacks.ema: optimizer.type schedule_free averages the weights "
            "of model itself; remove one of them"
        ),
        recipe=sft() + "optimizer: {type: schedule_free}\nscheduler: {type: constant}\ncallbacks: [ema]\n",
    ),
    "a reward model that is none": Case(
        "recipe.yaml:2:11: rewards.0: model: model: it has 2 labels; a reward model has one",
        recipe=(
            "type: grpo\nrewards: [{type: model, name_or_path: model}]\nmax_new_tokens: "
            "4\nnum_generations: 2\nmicro_batch_size: 2\n"
        )
        + sft(),
    ),
    "a stop token that is none": Case(
        "recipe.yaml:8:1: stop: 'zzzzq' is not a token of the vocabulary",
        recipe=GRPO + "stop: [zzzzq]\n",
    ),
    "the best of no evaluation": Case(
        (
            "recipe.yaml: eval_interval: 0, and the callback restore_best follows the "
            "evaluations; give the steps between them"
        ),
        recipe=sft() + "callbacks: [restore_best]\n",
    ),
    "a split of a stream": Case(
        "recipe.yaml:2:64: data.train_eval_split: a stream cannot be split; give eval_sources",
        recipe=(
            "model: {name_or_path: model, dtype: fp32}\ndata: {sources: [{name_or_path: "
            "rows.jsonl, streaming: true}], train_eval_split: [0.5,0.5]}\ntrain_iters: 2\n"
        ),
    ),
}
