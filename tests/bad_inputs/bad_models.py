"""Models and tokenizers that are missing, damaged, hostile, or do not fit the run."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

from tests import tiny
from tests.bad_inputs.case import CHAT, Case, altered, lines, sft


def without(name: str) -> Any:
    return altered(lambda folder: (folder / name).unlink())


def config(**changes: Any) -> Any:
    """The tiny model, its config changed."""

    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **changes}))

    return altered(change)


def bytes_of(name: str, change: Any) -> Any:
    return altered(lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())))


class Planted:
    def __reduce__(self) -> Any:
        return os.mkdir, ("planted",)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(), 2))


def zip_pickled(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()

    torch.save({"a": Planted()}, folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values |= {"auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}, "model_type": "mine"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "mine.py").write_text("import os\nos.mkdir('planted')\n")


def own_tokenizer(folder: Path) -> None:
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values |= {"auto_map": {"AutoTokenizer": ["mine.T", None]}, "tokenizer_class": "Mine"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "mine.py").write_text("import os\nos.mkdir('planted')\n")


def shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"weight_map": {"model.norm.weight": files[0], "lm_head.weight": files[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tiny.save_tokenizer(folder)
    shape = {"vocab_size": 320, "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=3)).save_pretrained(folder)


def vit(folder: Path) -> None:
    from transformers import ViTConfig

    tiny.save_tokenizer(folder)
    ViTConfig().save_pretrained(folder)


LORA = "model: {name_or_path: model, dtype: fp32, peft_config: %s}\ndata: {sources: [rows.jsonl]}\n"

CASES: dict[str, Case] = {
    "no such folder": Case(
        "recipe.yaml:1:23: model.name_or_path: ./no: no such file or folder", recipe=sft(model="./no")
    ),
    "no such folder at home": Case(
        "recipe.yaml:1:23: model.name_or_path: ~/no: no such file or folder", recipe=sft(model="~/no")
    ),
    "a file": Case(
        "recipe.yaml:1:23: model.name_or_path: rows.jsonl: It looks like the config file at "
        "'rows.jsonl' is not a valid JSON file.",
        recipe=sft(model="rows.jsonl"),
    ),
    "a model of the hub, offline": Case(
        "recipe.yaml:1:23: model.name_or_path: some/model: no folder here, and HF_HUB_OFFLINE forbids "
        "asking the hub; unset it, or name a folder",
        recipe=sft(model="some/model"),
    ),
    "no such GGUF file": Case(
        "recipe.yaml:1:23: model.name_or_path: no.gguf: no such file or folder", recipe=sft(model="no.gguf")
    ),
    "a damaged GGUF file": Case(
        "recipe.yaml:1:23: model.name_or_path: m/bad.gguf: unpack_from requires a buffer of at least 24 "
        "bytes for unpacking 20 bytes at offset 4 (actual buffer size is 6)",
        recipe=sft(model="m/bad.gguf"),
        files={"m/bad.gguf": "GGUFxx"},
    ),
    "no config": Case(
        "recipe.yaml:1:23: model.name_or_path: model: no config.json in it; expected a folder that "
        "save_pretrained wrote",
        files={"model": without("config.json")},
    ),
    "a config that is cut off": Case(
        "recipe.yaml:1:23: model.name_or_path: model: It looks like the config file at "
        "'model/config.json' is not a valid JSON file.",
        files={"model": bytes_of("config.json", lambda b: b[:40])},
    ),
    "a config that is a list": Case(
        "recipe.yaml:1:23: model.name_or_path: model: Unrecognized model in model. Should have a "
        "`model_type` key in its config.json.",
        files={"model": bytes_of("config.json", lambda b: b"[1]")},
    ),
    "a config without a type": Case(
        "recipe.yaml:1:23: model.name_or_path: model: Unrecognized model in model. Should have a "
        "`model_type` key in its config.json.",
        files={"model": bytes_of("config.json", lambda b: b"{}")},
    ),
    "an unknown type of model": Case(
        "recipe.yaml:1:23: model.name_or_path: model: its config.json says model_type lama, which this "
        "version of transformers does not know",
        files={"model": config(model_type="lama")},
    ),
    "a width that is a word": Case(
        "recipe.yaml:1:23: model.name_or_path: model: Validation error for field 'hidden_size': "
        "TypeError: Field 'hidden_size' expected int, got str (value: 'wide')",
        files={"model": config(hidden_size="wide")},
    ),
    "a width below 0": Case(
        "recipe.yaml:1:23: model.name_or_path: model: Trying to create tensor with negative dimension -4: [320, -4]",
        files={"model": config(hidden_size=-4)},
    ),
    "heads that do not part the width": Case(
        "recipe.yaml:1:23: model.name_or_path: model: Class validation error for validator "
        "'validate_architecture': ValueError: The hidden size (32) is not a multiple of the number of "
        "attention heads (5).",
        files={"model": config(num_attention_heads=5)},
    ),
    "generation settings that contradict one another": Case(
        "recipe.yaml:1:23: model.name_or_path: model: Greedy methods (do_sample != True) without beam search do not "
        "support `num_return_sequences` different than 1 (got 3).",
        files={"model": bytes_of("generation_config.json", lambda b: b[:1] + b'"num_return_sequences": 3,' + b[1:])},
    ),
    "no weights": Case(
        "recipe.yaml:1:23: model.name_or_path: model: no weights in it; expected model.safetensors, or "
        "an index with its files",
        files={"model": without("model.safetensors")},
    ),
    "a file of weights is missing": Case(
        "recipe.yaml:1:23: model.name_or_path: model: model-00002-of-00002.safetensors is missing, "
        "which model.safetensors.index.json names; some of the weights are in it",
        files={"model": altered(shards)},
    ),
    "a damaged index of weights": Case(
        "recipe.yaml:1:23: model.name_or_path: model: model.safetensors.index.json is damaged: it is no "
        "list of the files that hold the weights",
        files={"model": altered(lambda f: (shards(f), (f / "model.safetensors.index.json").write_text("{")))},
    ),
    "a damaged header": Case(
        "recipe.yaml:1:23: model.name_or_path: model: model.safetensors is damaged: its header cannot be read",
        files={"model": bytes_of("model.safetensors", lambda b: b[:8] + b"x" + b[9:])},
    ),
    "a header without end": Case(
        "recipe.yaml:1:23: model.name_or_path: model: model.safetensors is damaged or cut off: it is "
        "too short for its header",
        files={"model": bytes_of("model.safetensors", lambda b: b"\xff" * 8 + b[8:])},
    ),
    "weights that are cut off": Case(
        "recipe.yaml:1:23: model.name_or_path: model: model.safetensors is cut off, or was altered: its "
        "size does not fit its header",
        files={"model": bytes_of("model.safetensors", lambda b: b[:-100])},
    ),
    "an empty file of weights": Case(
        "recipe.yaml:1:23: model.name_or_path: model: model.safetensors is damaged or cut off: it is "
        "too short for its header",
        files={"model": bytes_of("model.safetensors", lambda b: b"")},
    ),
    "a pointer in place of weights": Case(
        "recipe.yaml:1:23: model.name_or_path: model: model.safetensors is a pointer of Git LFS; `git "
        "lfs pull` fetches the weights themselves",
        files={
            "model": bytes_of(
                "model.safetensors", lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12\n"
            )
        },
    ),
    "weights of another shape": Case(
        "recipe.yaml:1:23: model.name_or_path: model: the weights do not fit the config: "
        "model.layers.0.mlp.down_proj.weight is [32, 64] in the file, [32, 96] by the config; "
        "model.layers.0.mlp.gate_proj.weight is [64, 32] in the file, [96, 32] by the config; "
        "model.layers.0.mlp.up_proj.weight is [64, 32] in the file, [96, 32] by the config; and 3 more",
        files={"model": config(intermediate_size=96)},
    ),
    "weights of fewer layers": Case(
        "recipe.yaml:1:23: model.name_or_path: model: the weights do not fit the config: "
        "model.layers.2.input_layernorm.weight is missing; model.layers.2.mlp.down_proj.weight is "
        "missing; model.layers.2.mlp.gate_proj.weight is missing; and 6 more",
        files={"model": config(num_hidden_layers=3)},
    ),
    "a tokenizer with more tokens": Case(
        "recipe.yaml:1:23: model.name_or_path: model: the tokenizer has 120 tokens, 'Ĉ' among them, for "
        "which the model has no row (it has 200): they do not belong together; give "
        "tokenizer.name_or_path of the model's own, or model.resize_vocabulary: true for rows with "
        "random weights",
        files={"model": lambda f: tiny.save_model(f, vocab_size=200)},
    ),
    "a model with code of its own": Case(
        "recipe.yaml:1:23: model.name_or_path: model: it brings Python code of its own, which is run "
        "only with model.trust_remote_code: true",
        files={"model": altered(own_code)},
    ),
    "a tokenizer with code of its own": Case(
        "recipe.yaml:1:23: model.name_or_path: model: it brings Python code of its own, which is run "
        "only with tokenizer.trust_remote_code: true",
        files={"model": altered(own_tokenizer)},
    ),
    "a pickle in place of weights": Case(
        "recipe.yaml:1:23: model.name_or_path: model: its .bin file holds more than tensors, such as "
        "posix.mkdir, which could run code, and was not loaded; have the weights written as safetensors",
        files={"model": altered(pickled)},
    ),
    "a pickle among weights": Case(
        "recipe.yaml:1:23: model.name_or_path: model: its .bin file holds more than tensors, such as "
        "posix.mkdir, which could run code, and was not loaded; have the weights written as safetensors",
        files={"model": altered(zip_pickled)},
    ),
    "no tokenizer": Case(
        "recipe.yaml:1:23: model.name_or_path: model: no tokenizer in it; give tokenizer.name_or_path",
        files={"model": altered(lambda f: [p.unlink() for p in f.glob("token*")])},
    ),
    "no such tokenizer": Case(
        "recipe.yaml:3:27: tokenizer.name_or_path: ./no: no such file or folder",
        recipe=sft(more="tokenizer: {name_or_path: ./no}\n"),
    ),
    "a tokenizer of the hub, offline": Case(
        "recipe.yaml:3:27: tokenizer.name_or_path: some/tok: no folder here, and HF_HUB_OFFLINE forbids "
        "asking the hub; unset it, or name a folder",
        recipe=sft(more="tokenizer: {name_or_path: some/tok}\n"),
    ),
    "a tokenizer that is cut off": Case(
        "recipe.yaml:1:23: model.name_or_path: model: its tokenizer cannot be read: JSONDecodeError: "
        "Expecting value: line 7 column 12 (char 100)",
        files={"model": bytes_of("tokenizer.json", lambda b: b[:100])},
    ),
    "a tokenizer that is none": Case(
        "recipe.yaml:1:23: model.name_or_path: model: its tokenizer cannot be read: KeyError: 'added_tokens'",
        files={"model": bytes_of("tokenizer.json", lambda b: b"{}")},
    ),
    "no chat template": Case(
        "rows.jsonl: chats need a chat template, and the tokenizer model has none; set "
        "tokenizer.chat_template, or use the tokenizer of a chat model",
        files={"model": altered(lambda f: (f / "chat_template.jinja").unlink())},
    ),
    "no such template file": Case(
        "recipe.yaml:3:28: tokenizer.chat_template: no.jinja: No such file or directory",
        recipe=sft(more="tokenizer: {chat_template: no.jinja}\n"),
    ),
    "a template that is none": Case(
        "rows.jsonl: the chat template does not parse: Expected an expression, got 'end of statement block' (its "
        "line 1)",
        recipe=sft(more="tokenizer: {chat_template: '{% for %}'}\n"),
    ),
    "a template that asks for what is not there": Case(
        "rows.jsonl:1: the chat template refuses it: 'list object' has no attribute 'foo'",
        recipe=sft(more="tokenizer: {chat_template: '{{ messages.foo.bar }}'}\n"),
    ),
    "a template that reaches for classes": Case(
        "rows.jsonl: the chat template leaves its sandbox: access to attribute '__class__' of 'tuple' "
        "object is unsafe.",
        recipe=sft(more='tokenizer: {chat_template: "{{ ().__class__.__mro__[1].__subclasses__() }}"}\n'),
    ),
    "a template that reaches for the system": Case(
        "rows.jsonl: the chat template leaves its sandbox: access to attribute '__init__' of 'type' object is unsafe.",
        recipe=sft(more="tokenizer: {chat_template: \"{{ cycler.__init__.__globals__.os.mkdir('planted') }}\"}\n"),
    ),
    "a template with a long loop": Case(
        "rows.jsonl:1: the chat template refuses it: Range too big. The sandbox blocks ranges larger "
        "than MAX_RANGE (100000).",
        recipe=sft(more='tokenizer: {chat_template: "{% for i in range(999999999) %}x{% endfor %}"}\n'),
    ),
    "a template that says nothing": Case(
        "rows.jsonl:1: message 2: its words 'three' do not stand in what the chat template makes of it, so that it "
        "would not be learned; use a template that renders it, or remove the row",
        recipe=sft(more="tokenizer: {chat_template: \"{{ '' }}\"}\n"),
    ),
    "an unknown pad token": Case(
        "recipe.yaml:3:24: tokenizer.pad_token: '<nope>' is not in the vocabulary",
        recipe=sft(more="tokenizer: {pad_token: '<nope>'}\n"),
    ),
    "more tokens than learned positions": Case(
        "recipe.yaml:2:43: data.max_length: 4096 tokens, and the model has learned 64 positions; lower it",
        recipe=sft(data=", max_length: 4096"),
        files={"model": gpt2},
    ),
    "an adapter for nothing": Case(
        "recipe.yaml:1:43: model.peft_config: Target modules {'nope'} not found in the base model. "
        "Please check the target modules and try again.",
        recipe=LORA % "{peft_type: lora, target_modules: [nope]}",
    ),
    "an unknown adapter": Case(
        "recipe.yaml:1:68: model.peft_config.peft_type: LORRA; did you mean 'LORA'? there are: ADALORA, "
        "ADAMSS, ADAPTION_PROMPT, BEFT, BOFT, C3A, CARTRIDGE, CPT, DEFT, DELORA, FOURIERFT, FROD, "
        "GLORA, GRALORA, HIRA, HRA, IA3, LILY, LN_TUNING, LOHA, LOKR, LORA, MISS, "
        "MULTITASK_PROMPT_TUNING, OFT, OSF, PEANUT, POLY, PREFIX_TUNING, PROMPT_TUNING, PSOFT, PVERA, "
        "P_TUNING, RANDLORA, ROAD, SHADOW, SHIRA, SUPERTUNING, TINYLORA, TRAINABLE_TOKENS, UNILORA, "
        "VBLORA, VERA, WAVEFT, XLORA",
        recipe=LORA % "{peft_type: lorra}",
    ),
    "an unknown key of an adapter": Case(
        "recipe.yaml:1:80: model.peft_config.rank: unknown; there are: alora_invocation_tokens, "
        "alpha_pattern, arrow_config, auto_mapping, base_model_name_or_path, bias, corda_config, "
        "ensure_weight_tying, eva_config, exclude_modules, fan_in_fan_out, inference_mode, "
        "init_lora_weights, kasa_config, layer_replication, layers_pattern, layers_to_transform, "
        "loftq_config, lora_alpha, lora_bias, lora_dropout, lora_ga_config, megatron_config, "
        "megatron_core, modules_to_save, monteclora_config, peft_type, peft_version, qalora_group_size, "
        "r, rank_pattern, revision, runtime_config, target_modules, target_parameters, task_type, "
        "trainable_token_indices, use_bdlora, use_dora, use_qalora, use_rslora, velora_config",
        recipe=LORA % "{peft_type: lora, rank: 8}",
    ),
    "an adapter of rank 0": Case(
        "recipe.yaml:1:43: model.peft_config: `r` should be a positive integer value but the value passed is 0",
        recipe=LORA % "{peft_type: lora, r: 0}",
    ),
    "an unknown key of the config": Case(
        "recipe.yaml:1:43: model.hf_config_kwargs: LlamaConfig has no 'hiden_size'; did you mean 'hidden_size'?",
        recipe=sft().replace("dtype: fp32", "dtype: fp32, hf_config_kwargs: {hiden_size: 3}"),
    ),
    "an unknown attention": Case(
        'recipe.yaml:1:64: model.attn_implementation: Specified `attn_implementation="flsh"` is not '
        'supported. The only possible arguments are `attn_implementation="eager"`, `"paged|eager"`, '
        '`"attn_implementation=flash_attention_2"`, `"attn_implementation=flash_attention_3"`, '
        '`"attn_implementation=flash_attention_4"`, `"attn_implementation=sdpa"`, '
        '`"attn_implementation=flex_attention"`.',
        recipe=sft().replace("dtype: fp32", "dtype: fp32, attn_implementation: flsh"),
    ),
    "attention that is not installed": Case(
        "recipe.yaml:1:64: model.attn_implementation: FlashAttention2 has been toggled on, but it "
        "cannot be used due to the following error: the package for FlashAttention2 doesn't seem to be "
        "installed.",
        recipe=sft().replace("dtype: fp32", "dtype: fp32, attn_implementation: flash_attention_2"),
    ),
    "kernels that are not installed": Case(
        "recipe.yaml:1:36: model.type: liger needs the library liger-kernel: pip install liger-kernel",
        recipe=sft().replace("dtype: fp32", "type: liger"),
    ),
    "a model that is not causal": Case(
        "recipe.yaml:1:23: model.name_or_path: model: no causal language model of transformers has such a config",
        files={"model": vit},
    ),
    "a reference with another vocabulary": Case(
        "recipe.yaml:2:27: ref_model.name_or_path: other: the tokenizer has 120 tokens, 'Ĉ' among them, "
        "for which the model has no row (it has 200): they do not belong together; give "
        "tokenizer.name_or_path of the model's own, or model.resize_vocabulary: true for rows with "
        "random weights",
        recipe="type: dpo\nref_model: {name_or_path: other, dtype: fp32}\n" + sft(),
        files={
            "other": lambda f: tiny.save_model(f, vocab_size=200),
            "rows.jsonl": lines({"chosen": CHAT, "rejected": [*CHAT[:1], {"role": "assistant", "content": "yes"}]}),
        },
    ),
}
