"""What a run will take is what it takes: the memory that torch allocates, steps, tokens; and what would make it fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from torch.profiler import ProfilerActivity, profile

from arctic_training import get_config
from arctic_training.registry import lookup
from arctic_training.trainer.plan import Machine, Placement, Work, make_plan
from tests import processes, tiny

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "pad_token_id": 0, "eos_token_id": 3}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}


def settings(folder: Path, shape: Mapping[str, int], length: int, dtype: str = "fp32", **more: Any) -> dict[str, Any]:
    """A recipe for a model with random weights of this shape, and rows that are full."""
    tiny.save_tokenizer(folder)
    sizes = {"hidden_size": shape["width"], "intermediate_size": shape["inner"], "num_hidden_layers": shape["layers"]}
    (folder / "config.json").write_text(json.dumps(LLAMA | sizes | {"vocab_size": shape["vocabulary"]}))
    (folder / "rows.jsonl").write_text(json.dumps({"text": "one two three " * more.pop("repeats", 2) * length}) + "\n")
    return {
        "type": "causal",
        "model": {"name_or_path": str(folder), "random_weights": True, "dtype": dtype}
        | {key: more.pop(key) for key in ("activation_checkpointing", "peft_config") if key in more},
        "data": {"sources": [str(folder / "rows.jsonl")], "max_length": length, "cache_dir": str(folder / "cache")},
        "output_dir": str(folder / "run"),
        "train_iters": 2,
        "logger": {"level": "ERROR"},
        **more,
    }


def peak(recipe: dict[str, Any]) -> int:
    """The most bytes that torch's allocator gave out at once in a run, by torch's profiler."""
    config = get_config(recipe)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
        trainer.train()
    trainer.close()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    most = held = 0
    for _, size in sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"):
        held += size
        most = max(most, held)
    return most


def stage(number: int, **zero: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": number, **zero}}}


WIDE = {"width": 256, "inner": 1024, "layers": 3, "vocabulary": 2000}
DEEP = {"width": 64, "inner": 192, "layers": 10, "vocabulary": 320}
WORDY = {"width": 64, "inner": 128, "layers": 2, "vocabulary": 20_000}
BROAD = {"width": 64, "inner": 768, "layers": 6, "vocabulary": 320}
CASES: dict[str, tuple[Mapping[str, int], int, str, dict[str, Any]]] = {
    "many weights": (WIDE, 64, "fp32", stage(0)),
    "long rows": (DEEP, 1024, "bf16", stage(1)),
    "long rows, recomputed": (DEEP, 1024, "fp32", {**stage(2), "activation_checkpointing": True}),
    "long rows, but products recomputed": (DEEP, 1024, "fp32", {**stage(2), "activation_checkpointing": "selective"}),
    "long rows, tiled": (BROAD, 1024, "fp32", {**stage(2), "tiled_mlp_compute": True, "repeats": 8}),
    "long rows, tiled and recomputed": (
        BROAD,
        1024,
        "bf16",
        {**stage(1), "tiled_mlp_compute": True, "activation_checkpointing": True},
    ),
    "many labels": (WORDY, 512, "bf16", stage(0)),
}


def peak_of(folder: str, name: str) -> int:
    shape, length, dtype, more = CASES[name]
    return peak(settings(Path(folder), shape, length, dtype, **more))


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_15_percent_of_what_torch_allocates(name: str, tmp_path: Path) -> None:
    shape, length, dtype, more = CASES[name]
    plan = make_plan(get_config(settings(tmp_path, shape, length, dtype, **more)), Machine(device="cpu"))
    estimate = plan.placement.estimate
    (measured,) = processes.run(peak_of, 1, str(tmp_path), name)
    assert abs(estimate.total / measured - 1) < 0.15, (estimate.total / measured, measured, estimate)


GIB = 2**30
BIG = {"width": 4096, "inner": 14336, "layers": 32, "vocabulary": 128_256}


def big(folder: Path, *overrides: str, **more: Any) -> Any:
    recipe = settings(folder, BIG, 2048, "bf16", micro_batch_size=4, **more)
    return get_config({**recipe, "data": {**recipe["data"], "pack_samples": True}}, overrides)


def test_parameters_and_memory_of_a_large_model_need_neither(tmp_path: Path) -> None:
    plan = make_plan(big(tmp_path), Machine(8, device_memory=80 * GIB))
    (model,) = plan.models
    embeddings, layer = 2 * 128_256 * 4096, 2 * 4096 * (4096 + 2048) + 3 * 4096 * 14336 + 2 * 4096
    assert model.footprint.parameters == model.footprint.trained == embeddings + 32 * layer + 4096
    assert model.batch.tokens == 4 * 2048
    by_place = {(one.stage, one.offload): one for one in plan.placements}
    assert len(by_place) == 8
    assert plan.placement.stage == 1  # of several processes
    assert by_place[2, "none"].estimate.total < by_place[1, "none"].estimate.total < by_place[0, "none"].estimate.total
    # master weights, two moments and a gradient, of four bytes each
    assert by_place[2, "optimizer"].main_memory == 16 * model.footprint.parameters
    assert by_place[2, "none"].main_memory == 0


def test_what_is_computed_again_takes_the_place_of_what_is_kept(tmp_path: Path) -> None:
    def placed(*overrides: str, device: Literal["cpu", "gpu"] = "gpu") -> Placement:
        return make_plan(big(tmp_path, *overrides), Machine(8, device)).placement

    again = "model.activation_checkpointing"
    offload, tiles = "activation_checkpoint_cpu_offload=true", "tiled_mlp_compute=true"
    ways = [
        (f"{again}=false",),
        (f"{again}=selective",),
        (f"{again}=true",),
        (f"{again}=true", tiles),
        (offload, tiles),
    ]
    placements = [placed(*way) for way in ways]
    sizes = [one.estimate.activations for one in placements]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 10 * sizes[3]
    assert [one.recomputes for one in placements] == [False, True, True, True, True]
    state = 4 * 2048 * 4096 * 2  # tokens, width, bytes
    assert sizes[3] - sizes[4] == pytest.approx(31 * state, rel=0.01)
    assert placements[4].main_memory == 8 * 32 * state and placements[3].main_memory == 0
    on_cpu = placed(offload, tiles, device="cpu")
    assert on_cpu.estimate.activations == sizes[3] and on_cpu.main_memory == 0


def test_layers_are_computed_again_where_the_run_would_decide_so(tmp_path: Path) -> None:
    roomy, tight = (make_plan(big(tmp_path), Machine(8, device_memory=size * GIB)) for size in (192, 80))
    assert (roomy.placement.recomputes, tight.placement.recomputes) == (False, True)
    assert tight.placement.estimate.activations < roomy.placement.estimate.activations / 5
    kept = make_plan(big(tmp_path, "model.activation_checkpointing=false"), Machine(8, device_memory=80 * GIB))
    assert not kept.placement.recomputes and kept.fits is False


def test_what_would_make_it_fit_fits_and_what_costs_less_comes_first(tmp_path: Path) -> None:
    config = big(tmp_path, "model.activation_checkpointing=false")
    machine = Machine(8, device_memory=80 * GIB)
    plan = make_plan(config, machine)
    changes = [one.change for one in plan.alternatives]
    assert "model.peft_config for an adapter" in changes[-1]
    assert changes[0].startswith("deepspeed.zero_optimization.stage: 2, ")
    for change in changes[:2]:  # as the recipe says it
        overrides = [part.split(" with ")[0].replace(": ", "=") for part in change.split(", ")]
        again = [*overrides, "gradient_accumulation_steps=4"]
        assert make_plan(big(tmp_path, "model.activation_checkpointing=false", *again), machine).fits, change
    assert any("offload_optimizer" in one for one in changes)
    small = make_plan(config, Machine(8, device_memory=80 * GIB, host_memory=64 * GIB))
    assert not any("offload_optimizer" in one.change for one in small.alternatives)
    assert make_plan(config, Machine(8, device_memory=GIB // 10)).alternatives == []
    assert make_plan(config, Machine(8)).fits is None


def test_an_adapter_and_a_reference_take_their_part(tmp_path: Path) -> None:
    lora = {"peft_type": "lora", "r": 8, "target_modules": ["q_proj"]}
    recipe = settings(tmp_path, WIDE, 64, peft_config=lora)
    (model,) = make_plan(get_config(recipe), Machine()).models
    assert model.footprint.trained == 3 * 8 * (256 + 256)
    full = make_plan(get_config(settings(tmp_path, WIDE, 64)), Machine()).placement.estimate
    dpo = {**settings(tmp_path, WIDE, 64), "type": "dpo", "data": {"sources": ["some/pairs"], "max_length": 64}}
    plan = make_plan(get_config(dpo), Machine())
    assert [one.role for one in plan.models] == ["model", "ref_model"]
    assert plan.placement.estimate.weights == 2 * full.weights
    assert plan.placement.estimate.optimizer == full.optimizer
    assert plan.models[0].batch.tokens == 2 * 64  # both completions


def test_steps_and_tokens_are_those_of_the_prepared_data(tmp_path: Path) -> None:
    recipe = settings(tmp_path, DEEP, 64, epochs=3)
    del recipe["train_iters"]
    rows = [{"text": "one two " * n} for n in range(1, 12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert make_plan(get_config(recipe), Machine()).work == Work()
    ((counted, batches),) = processes.run(prepared, 1, recipe)
    for world in (1, 2, 3):
        work = make_plan(get_config(recipe), Machine(world)).work
        assert work == Work(3 * -(-batches // world), 3 * counted, flops=work.flops)
    assert make_plan(get_config(recipe, ["train_iters=5"]), Machine()).work.steps == 5
    for world in (1, 2):
        work = make_plan(get_config(recipe, ["epoch_length=2"]), Machine(world)).work
        assert work == Work(6, round(round(2 * world / batches * counted) * 6 / 2), flops=work.flops)
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[-1]) + "\n")  # not prepared: as many as the rows may have
    other = get_config(recipe, ["train_iters=5", "micro_batch_size=2"])
    work = make_plan(other, Machine(2)).work
    assert work == Work(5, 5 * 2 * 2 * 64, at_most=True, flops=work.flops)


def test_operations_are_those_of_torchs_own_counter(tmp_path: Path) -> None:
    """Forward and backward of a row of one document, whose causal attention computes half of what torch counts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    recipe = get_config(settings(tmp_path, DEEP, 64), ["train_iters=3"])
    planned = make_plan(recipe, Machine()).work.flops
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        ids = torch.arange(64)[None]
        model(input_ids=ids, labels=ids).loss.backward()
    pairs = 10 * 2 * 2 * 64 * 64 * 64 * 3  # layers, scores and values, width, pairs of tokens, forward and backward
    assert planned is not None
    assert planned == pytest.approx(3 * (counter.get_total_flops() - pairs / 2), rel=0.02)


def prepared(recipe: dict[str, Any]) -> tuple[int, int]:
    """Prepares the data of a recipe, and returns the tokens and the batches of an epoch of its trainer."""
    trainer: Any = lookup("trainer", recipe["type"])(get_config({**recipe, "epochs": 1}))  # type: ignore[call-arg]
    batches = [int(batch["attention_mask"].sum()) for batch in trainer.train_loader]
    trainer.close()
    return sum(batches), len(batches)
