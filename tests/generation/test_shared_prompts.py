"""Equal prompts of a batch are read once, and their completions are those of each prompt alone by transformers."""

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from arctic_training.generation.generate import generate
from arctic_training.generation.sampling import SamplingParams

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 60,
    "initializer_range": 0.5,  # so that likely tokens are likely
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "output_router_logits": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}
STATEFUL: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 1},
}
GROUP = 4
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18, 19, 20, 21, 22]]


def make_model(kind: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | settings), dtype=torch.float32).eval()


def complete(model: Any, prompts: list[list[int]], **settings: Any) -> tuple[list[list[int]], int]:
    """Returns the completions, and the number of positions that the model embedded."""
    positions = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: positions.append(inputs[0].numel()))
    with hook:
        done = generate(
            model,
            prompts,
            SamplingParams(6, **{"temperature": 0.0} | settings),
            tokenizer=SimpleNamespace(pad_token_id=0),  # type: ignore[arg-type]
            eos_token_ids=[3],
        )
    return done.token_ids, sum(positions)


def alone(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=[3], pad_token_id=0
    )
    row: list[int] = out[0, len(prompt) :].tolist()
    return row


@pytest.mark.parametrize("kind", [*MODELS, *STATEFUL])
def test_completions_of_repeated_prompts_are_those_of_each_alone(kind: str) -> None:
    model = make_model(kind, MODELS.get(kind, {}) | STATEFUL.get(kind, {}))
    completions, positions = complete(model, [prompt for prompt in PROMPTS for _ in range(GROUP)])
    expected = [alone(model, prompt) for prompt in PROMPTS]
    assert completions == [one for one in expected for _ in range(GROUP)]
    assert len({tuple(one) for one in expected}) > 1
    longest, rows = max(map(len, PROMPTS)), len(PROMPTS) * GROUP
    steps = max(map(len, completions))
    if kind in MODELS:  # all columns but the last once a prompt, then one position a step and row
        assert positions == len(PROMPTS) * (longest - 1) + rows * steps
    else:  # a state cannot be copied from row to row
        assert positions == rows * (longest + steps - 1)


@pytest.mark.parametrize(
    "adapter",
    [
        peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj", "v_proj"]),
        peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=lambda one: one.peft_type.value,
)
def test_completions_with_an_adapter_are_those_of_each_prompt_alone(adapter: Any) -> None:
    model = peft.get_peft_model(make_model("llama", {}), adapter).eval()
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    expected = [alone(model, prompt) for prompt in prompts]
    assert complete(model, prompts)[0] == expected and expected[0] != expected[-1]
    assert complete(model, prompts[::-1])[0] == expected[::-1]


def test_what_cannot_be_shared_is_read_row_by_row() -> None:
    model = make_model("llama", {})
    steps = max(len(one) for one in complete(model, PROMPTS)[0])
    assert complete(model, PROMPTS)[1] == len(PROMPTS) * (9 + steps - 1)  # nothing is repeated
    completions, positions = complete(model, [[5], [5], [6, 7]])  # the one token of a prompt is its last
    assert completions == [alone(model, prompt) for prompt in ([5], [5], [6, 7])]
    assert positions == 3 * (2 + max(map(len, completions)) - 1)
    beams, _ = complete(model, [[5, 6, 7]] * 2, num_beams=2)
    assert beams[0] == beams[1]


def test_prompts_that_differ_in_padding_alone_are_not_equal() -> None:
    model = make_model("llama", {})
    prompts = [[0, 0, 7, 8], [7, 8], [0, 0, 7, 8]]  # 0 is the padding too
    assert complete(model, prompts)[0] == [alone(model, prompt) for prompt in prompts]


def test_prompts_of_an_encoder_decoder_are_encoded_row_by_row() -> None:
    torch.manual_seed(0)
    config = T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=60, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    completions, _ = complete(model, [[5, 6, 7]] * 3)
    assert completions[0] == completions[1] == completions[2]
