"""Runs on a mesh of processes: the losses of one process, the same bits after a resume, whole models when exported."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arctic_training import SFTTrainer, get_config
from arctic_training.checkpoint.consolidated import ConsolidatedWeights
from arctic_training.distributed import process_group
from arctic_training.errors.types import RecipeError
from arctic_training.registry import lookup
from arctic_training.trainer.throughput import MEASURED
from tests import processes
from tests.contract.cases import recipe
from tests.trainer.test_same_run import require_same, settings_of

CHECKPOINTS = [
    {"type": "deepspeed", "save_every_n_steps": 3},
    {"type": "huggingface", "save_end_of_training": True},
]


LORA = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear", "lora_dropout": 0.0}


def train(
    root: str, run: str, mesh: dict[str, int], accumulate: int, more: dict[str, Any], name: str = "sft"
) -> dict[str, int]:
    process_group.init_process_group()
    if process_group.is_main():
        recipe(name, Path(root) / "files")
    process_group.barrier()
    settings = settings_of(name, root, run, mesh=mesh, **more)
    settings["model"] |= settings.pop("adapted", {})
    if name == "seq2seq":
        settings["model"] |= {"name_or_path": str(Path(root) / "files" / "model"), "task": "causal_lm"}
    settings["gradient_accumulation_steps"] = accumulate
    config = get_config(settings)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    trainer.train()
    progress: dict[str, int] = trainer.progress.state_dict()
    trainer.close()
    process_group.barrier()
    return progress


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, int]]:
    """The folder of a run of one process, its settings, and where it ended."""
    root = tmp_path_factory.mktemp("mesh")
    generates = {"type": "generate", "max_new_tokens": 3, "max_samples": 3, "save": True}
    more = {"train_iters": 20, "eval_interval": 7, "evaluators": [generates]}
    (end,) = processes.share(train, 1, str(root), "alone", {}, 2, more)
    return root, more, end


@pytest.mark.parametrize(
    ("world", "mesh", "accumulate"),
    [(2, {"data": 2}, 1), (2, {"model": 2}, 2), (4, {"model": 2}, 1)],
)
def test_a_run_on_a_mesh_is_the_run_of_one(
    world: int, mesh: dict[str, int], accumulate: int, alone: tuple[Path, dict[str, Any], dict[str, int]]
) -> None:
    """Losses, rates, gradient norms, evaluations and scored completions of 20 steps, and the counts of labels."""
    root, more, expected = alone
    run = f"{world}_{next(iter(mesh))}"
    for end in processes.share(train, world, str(root), run, mesh, accumulate, more):
        assert end == expected
    require_same(root, "alone", run)
    written = [sorted((root / one / "generations").rglob("*.jsonl")) for one in ("alone", run)]
    assert written[0] and [file.read_text() for file in written[0]] == [file.read_text() for file in written[1]]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("dpo", {"adapted": {"peft_config": LORA}, "optimizer": {"type": "sgd", "lr": 1.0}}),
        ("grpo", {"num_minibatches": 2, "beta": 0.1}),
        ("ppo", {}),
        ("reward", {"deepspeed": {"zero_optimization": {"stage": 2}}}),
        ("seq2seq", {}),
        pytest.param("classifier", {}, marks=pytest.mark.nightly),
        pytest.param("autoregressive", {}, marks=pytest.mark.nightly),
        pytest.param("dpo", {"sft_weight": 0.3}, marks=pytest.mark.nightly),
        pytest.param("dpo", {"precompute_ref_log_probs": True}, marks=pytest.mark.nightly),
        pytest.param("kto", {}, marks=pytest.mark.nightly),
        pytest.param("distill", {}, marks=pytest.mark.nightly),
        pytest.param("distill", {"on_policy_share": 0.5, "max_new_tokens": 6}, marks=pytest.mark.nightly),
        pytest.param("distill", {"teacher_top_k": 8, "hidden_weight": 0.0}, marks=pytest.mark.nightly),
        pytest.param("reinforce", {"beta": 0.1, "kl_in": "reward"}, marks=pytest.mark.nightly),
        pytest.param("grpo", {"dynamic_sampling": 2, "adapted": {"peft_config": LORA}}, marks=pytest.mark.nightly),
    ],
)
def test_a_run_of_any_objective_on_a_mesh_is_that_of_one(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    """A reference, teacher or critic is a model that is divided too, or the policy without its adapter."""
    more = {"train_iters": 20, "eval_interval": 9, **more}
    (expected,) = processes.share(train, 1, str(tmp_path), "alone", {}, 2, more, name)
    for end in processes.share(train, 2, str(tmp_path), "mesh", {"model": 2}, 2, more, name):
        assert end == expected
    require_same(tmp_path, "alone", "mesh")


def logged(root: Path, run: str) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (root / run / "metrics.jsonl").read_text().splitlines()]
    return {one["step"]: {k: v for k, v in one.items() if k not in ("time", *MEASURED)} for one in lines}


def saved(root: Path, run: str, step: int) -> dict[str, torch.Tensor]:
    files = sorted((root / run / "checkpoints" / "deepspeed" / f"step_{step}").glob("*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def exported(root: Path, run: str) -> Path:
    return root / run / "checkpoints" / "huggingface" / "step_6"


def test_a_run_that_is_resumed_on_its_mesh_has_the_same_bits(tmp_path: Path) -> None:
    """With dropout in layers that are computed twice, and with averaged weights."""
    model = {**settings_of("sft", str(tmp_path), "")["model"], "activation_checkpointing": True}
    model["hf_config_kwargs"] = {"attention_dropout": 0.1}
    more = {"train_iters": 6, "checkpoint": CHECKPOINTS, "model": model, "callbacks": [{"type": "ema"}]}
    processes.share(train, 2, str(tmp_path), "whole", {"model": 2}, 2, more)
    start = tmp_path / "whole" / "checkpoints" / "deepspeed" / "step_3"
    processes.share(train, 2, str(tmp_path), "resumed", {"model": 2}, 2, {**more, "resume": str(start)})
    expected, again = saved(tmp_path, "whole", 6), saved(tmp_path, "resumed", 6)
    assert len(expected) > 30 and expected.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    assert logged(tmp_path, "resumed") == {n: one for n, one in logged(tmp_path, "whole").items() if n > 3}
    parts = [load_file(tmp_path / f"whole/checkpoints/deepspeed/step_6/model_{rank}.safetensors") for rank in (0, 1)]
    uncut = [name for name, tensor in load_file(exported(tmp_path, "whole") / "model.safetensors").items()
             if tensor.shape == parts[0][name].shape]  # fmt: skip
    assert len(uncut) == 7 and all(torch.equal(parts[0][name], parts[1][name]) for name in uncut)


@pytest.mark.parametrize("name", ["ppo", "reward"])
def test_what_other_objectives_save_on_a_mesh_resumes_and_is_exported_whole(name: str, tmp_path: Path) -> None:
    """A policy with its critic, of which each has an engine that divides its layers, and a model of scores."""
    more: dict[str, Any] = {"train_iters": 6, "checkpoint": CHECKPOINTS}
    for run, world, mesh in (("alone", 1, {}), ("mesh", 2, {"model": 2}), ("resumed", 2, {"model": 2})):
        processes.share(train, world, str(tmp_path), run, mesh, 2, more, name)
        more = (
            {**more, "resume": str(tmp_path / "mesh" / "checkpoints" / "deepspeed" / "step_3")}
            if run == "mesh"
            else more
        )
    expected, again = saved(tmp_path, "mesh", 6), saved(tmp_path, "resumed", 6)
    assert expected.keys() == again.keys() and all(torch.equal(again[key], one) for key, one in expected.items())
    assert name == "reward" or any(key.startswith("critic") for key in expected)
    alone, mesh = (load_file(exported(tmp_path, run) / "model.safetensors") for run in ("alone", "mesh"))
    assert alone.keys() == mesh.keys()
    for key, tensor in alone.items():
        torch.testing.assert_close(mesh[key], tensor, rtol=0, atol=1e-5)


EMA: dict[str, Any] = {"optimizer": {"lr": 1e-3}, "callbacks": [{"type": "ema"}]}
SCHEDULE_FREE: dict[str, Any] = {
    "optimizer": {"type": "schedule_free", "lr": 1e-3},
    "scheduler": {"type": "constant"},
    "eval_interval": 2,
}


@pytest.mark.parametrize(
    ("first", "second", "averages"),
    [
        ((2, {"model": 2}, 2), (1, {}, 2), EMA),
        ((1, {}, 2), (2, {"model": 2}, 2), SCHEDULE_FREE),
        ((4, {"data": 2, "model": 2}, 1), (2, {"model": 2}, 2), SCHEDULE_FREE),
        ((2, {"model": 2}, 2), (2, {"data": 2}, 1), {**EMA, "deepspeed": {"zero_optimization": {"stage": 2}}}),
    ],
)
def test_a_run_goes_on_with_another_mesh(
    first: tuple[int, Any, int], second: tuple[int, Any, int], averages: dict[str, Any], tmp_path: Path
) -> None:
    """What is exported is the average that schedule_free keeps, or the trained weights beside those of the callback."""
    more = {"train_iters": 6, "checkpoint": CHECKPOINTS, **averages}
    world, mesh, accumulate = first
    processes.share(train, world, str(tmp_path), "first", mesh, accumulate, more)
    start = tmp_path / "first" / "checkpoints" / "deepspeed" / "step_3"
    world, mesh, accumulate = second
    processes.share(train, world, str(tmp_path), "second", mesh, accumulate, {**more, "resume": str(start)})
    one, two = logged(tmp_path, "first"), logged(tmp_path, "second")
    assert sorted(two) == [4, 5, 6]
    for step, values in two.items():
        assert values == pytest.approx(one[step], rel=1e-5, abs=1e-5)
    ends = [load_file(exported(tmp_path, run) / "model.safetensors") for run in ("first", "second")]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=0, atol=1e-5)
    for averaged in (False, True) if "callbacks" in averages else (False,):
        folders = [tmp_path / run / "checkpoints" / "deepspeed" / "step_6" for run in ("first", "second")]
        weights = [ConsolidatedWeights(folder, averaged=averaged) for folder in folders]
        assert set(weights[0]) == set(weights[1])
        for name in weights[0]:
            torch.testing.assert_close(weights[1][name], weights[0][name], rtol=0, atol=1e-5)


def test_an_adapter_that_is_resumed_on_its_mesh_is_exported_whole(tmp_path: Path) -> None:
    """Its folder is that of one process for PEFT, and resuming changes no bit of it."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    checkpoints = [{**CHECKPOINTS[0], "trainable_only": True}, CHECKPOINTS[1]]
    more = {"train_iters": 6, "checkpoint": checkpoints, "adapted": {"peft_config": LORA}, "optimizer": {"lr": 1e-2}}
    processes.share(train, 1, str(tmp_path), "alone", {}, 2, more)
    processes.share(train, 2, str(tmp_path), "mesh", {"model": 2}, 2, more)
    more["resume"] = str(tmp_path / "mesh" / "checkpoints" / "deepspeed" / "step_3")
    processes.share(train, 2, str(tmp_path), "resumed", {"model": 2}, 2, more)
    processes.share(train, 1, str(tmp_path), "joined", {}, 2, more)
    expected, again = saved(tmp_path, "mesh", 6), saved(tmp_path, "resumed", 6)
    assert expected.keys() == again.keys() and all(torch.equal(again[name], one) for name, one in expected.items())
    runs = ("alone", "mesh", "joined")
    weights = [load_file(exported(tmp_path, run) / "adapter_model.safetensors") for run in runs]
    for other in weights[1:]:
        assert other.keys() == weights[0].keys() and len(other) > 10
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5)
    prompt = AutoTokenizer.from_pretrained(exported(tmp_path, "mesh"))("one and two", return_tensors="pt")
    models = [AutoPeftModelForCausalLM.from_pretrained(exported(tmp_path, run)) for run in runs]
    tokens = [model.generate(**prompt, max_new_tokens=12, do_sample=False).tolist() for model in models]
    assert tokens[0] == tokens[1] == tokens[2]


def test_what_a_mesh_exports_is_whole_for_transformers(tmp_path: Path) -> None:
    """It has the names, the shapes and, for greedy decoding, the tokens of what one process exports."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = {**settings_of("sft", str(tmp_path), "")["data"], "pack_samples": True}
    more = {"train_iters": 6, "checkpoint": CHECKPOINTS, "data": data}
    processes.share(train, 1, str(tmp_path), "alone", {}, 2, more)
    processes.share(train, 2, str(tmp_path), "mesh", {"model": 2}, 2, more)
    folders = [exported(tmp_path, run) for run in ("alone", "mesh")]
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    assert {n: t.shape for n, t in weights[0].items()} == {n: t.shape for n, t in weights[1].items()}
    prompt = AutoTokenizer.from_pretrained(folders[1])("one and two", return_tensors="pt")
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    tokens = [model.generate(**prompt, max_new_tokens=12, do_sample=False).tolist() for model in models]
    assert tokens[0] == tokens[1]
    torch.testing.assert_close(models[0](**prompt).logits, models[1](**prompt).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_parallel_size": 2}, "mesh.model: 2, and sequence_parallel_size is above 1"),
        ({"optimizer": {"type": "muon"}}, "mesh.model: 2, and the optimizer muon computes with whole matrices"),
        (
            {"evaluators": [{"type": "lm_eval", "tasks": ["x"]}]},
            "mesh.model: 2, and the evaluator lm_eval is for whole",
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "zero_optimization.stage: 3, and processes divide"),
        ({"deepspeed": {"zero_optimization": {"stage": 0}}}, "zero_optimization.stage: 0, and processes divide"),
        (
            {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
            "zero_optimization.offload_optimizer: does not go with weights that processes divide",
        ),
        ({"deepspeed": {"tensor_parallel": {"autotp_size": 2}}}, "tensor_parallel: does not belong here: set it in"),
        ({"mesh": {"model": 0}}, "mesh.model: 0 should be greater than or equal to 1"),
        ({"mesh": {"tensor": 2}}, "mesh.tensor"),
    ],
)
def test_what_does_not_go_with_a_divided_model_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = settings_of("sft", str(tmp_path), "run", mesh={"model": 2})
    with pytest.raises(RecipeError, match=re.escape(message)):
        get_config({**settings, **changes})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"peft_config": {"peft_type": "IA3"}}, "mesh.model: 2, and of adapters LORA is divided, and IA3 is not"),
        ({"compile": True}, "mesh.model: 2, and compiled layers are not divided"),
        ({"type": "liger"}, "mesh.model: 2, and a model of type liger is not divided; use type: huggingface"),
    ],
)
def test_models_that_are_not_divided_are_refused(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = settings_of("sft", str(tmp_path), "run", mesh={"model": 2})
    with pytest.raises(RecipeError, match=re.escape(message)):
        get_config({**settings, "model": {**settings["model"], **section}})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "ref_model",
            {"type": "liger", "name_or_path": "x"},
            "mesh.model: 2, and ref_model: a model of type liger is not divided",
        ),
        ("ref_model", {"compile": True}, "mesh.model: 2, and ref_model: compiled layers are not divided"),
        (
            "reference_model_deepspeed",
            {"zero_optimization": {"stage": 3}},
            "reference_model_deepspeed.zero_optimization.stage: 3, and processes divide",
        ),
    ],
)
def test_references_that_are_not_divided_are_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        get_config({**settings_of("dpo", str(tmp_path), "run", mesh={"model": 2}), key: value})


def test_trainers_that_do_not_state_it_are_refused(tmp_path: Path) -> None:
    class Own(SFTTrainer):
        name = "own_loss_on_a_mesh_for_the_test"

        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss(batch)

    class Stated(Own):
        name = "stated_loss_on_a_mesh_for_the_test"
        tensor_parallel = True

    settings = settings_of("sft", str(tmp_path), "run", mesh={"model": 2})
    with pytest.raises(RecipeError, match=r"mesh\.model: 2, and Own does not state that its loss is right where"):
        get_config({**settings, "type": Own.name})
    assert get_config({**settings, "type": Stated.name}).mesh.model == 2
    for name, trainer in {"embedding": "EmbeddingTrainer", "gan": "GANTrainer", "vae": "VAETrainer"}.items():
        with pytest.raises(RecipeError, match=rf"mesh\.model: 2, and {trainer} does not state .* ZeRO stage 3"):
            get_config({**recipe(name, tmp_path / "files"), "mesh": {"model": 2}})
