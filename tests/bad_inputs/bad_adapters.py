"""Adapters that do not go with the model, the data or the rest of the recipe."""

import json
from pathlib import Path

from tests import tiny
from tests.bad_inputs.case import Case, lines, sft


def adapter(settings: str, *, model: str = "", data: str = "", more: str = "") -> str:
    """A recipe with an adapter of PEFT, whose section begins at column 43 of the first line."""
    model = f"model: {{name_or_path: model, dtype: fp32, peft_config: {{{settings}}}{model}}}\n"
    return f"{model}data: {{sources: [rows.jsonl]{data}}}\n{more}"


def save_prompt_adapter(at: Path) -> None:
    at.mkdir()
    settings = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    (at / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "model"}))


STAGE_3 = "deepspeed: {zero_optimization: {stage: 3}}\n"

CASES: dict[str, Case] = {
    "PEFT is not installed": Case(
        "recipe.yaml:1:43: model.peft_config: needs the library peft: pip install peft",
        recipe=adapter("peft_type: lora"),
        absent=["peft"],
    ),
    "past the loss": Case(
        "recipe.yaml:1:43: model.peft_config: ADAPTION_PROMPT calls the model past the loss of its targets; use "
        "another method",
        recipe=adapter("peft_type: adaption_prompt, adapter_len: 4, adapter_layers: 2"),
    ),
    "of another task": Case(
        "recipe.yaml:1:43: model.peft_config: PREFIX_TUNING does not run with this model: AttributeError: "
        "'LlamaForCausalLM' object has no attribute 'cls_layer_name'",
        recipe=adapter("peft_type: prefix_tuning, num_virtual_tokens: 3, task_type: SEQ_CLS"),
    ),
    "made of weights that are sharded": Case(
        "recipe.yaml:1:43: model.peft_config: this LORA is made of weights of the model, which ZeRO stage 3 has "
        "partitioned over the processes; use stage 2, or another method (Attempting to broadcast ...",
        recipe=adapter("peft_type: lora, use_dora: true", more=STAGE_3),
    ),
    "made of data": Case(
        "recipe.yaml:1:93: model.peft_config.init_lora_weights: eva takes the first weights from data that PEFT goes "
        "through before training, which no recipe makes it do; use another value",
        recipe=adapter("peft_type: lora, init_lora_weights: eva"),
    ),
    "of tied weights": Case(
        "recipe.yaml:1:43: model.peft_config: base_model.model.lm_head.lora_A.default.weight is a view of the memory "
        "of base_model.model.model.embed_tokens.lora_embedding_B.default, which DeepSpeed would separate; adapt one "
        "of the two, or train both by modules_to_save",
        recipe=adapter("peft_type: lora, target_modules: [embed_tokens, lm_head], ensure_weight_tying: true"),
        files={"model": lambda at: tiny.save_model(at, tie_word_embeddings=True)},
    ),
    "whose files PEFT cannot load": Case(
        "recipe.yaml:4:20: checkpoint.type: huggingface: PEFT cannot load what it saves of this DELORA: KeyError: "
        "'base_model.model.layers.0.self_attn.q_proj.delora_w_norm.default'",
        recipe="type: embedding\n"
        + adapter(
            "peft_type: delora, target_modules: [q_proj], modules_to_save: [norm]",
            more="checkpoint: {type: huggingface}\n",
        ),
        files={"rows.jsonl": lines({"anchor": "a", "positive": "b"})},
    ),
    "with new weights that nothing trains": Case(
        "recipe.yaml:1:43: model.peft_config: lm_head is among model.new_weights, and nothing would train it; put it "
        "into modules_to_save",
        recipe=adapter("peft_type: lora", model=", new_weights: [lm_head]"),
    ),
    "of virtual tokens, as a model": Case(
        "recipe.yaml:1:23: model.name_or_path: ad, an adapter of model: PROMPT_TUNING cannot be merged into its base; "
        "name the base",
        recipe=sft(model="ad"),
        files={"ad": save_prompt_adapter},
    ),
    "of virtual tokens, and packed rows": Case(
        "recipe.yaml:2:45: data.pack_samples: PROMPT_TUNING puts its tokens before a row, not in every sample of it; "
        "give pack_samples: false",
        recipe=adapter("peft_type: prompt_tuning, num_virtual_tokens: 3", data=", pack_samples: true"),
    ),
    "of virtual tokens, and completions of sharded weights": Case(
        "recipe.yaml:4:1: evaluators: 'generate': with an adapter of virtual tokens, prompts of each length are "
        "completed by themselves, in which the ranks of ZeRO stage 3 differ; set deepspeed.zero_optimization.stage: 2",
        recipe=adapter(
            "peft_type: prompt_tuning, num_virtual_tokens: 3",
            data=", eval_sources: [rows.jsonl]",
            more=f"eval_interval: 1\nevaluators: [generate]\n{STAGE_3}",
        ),
    ),
}
