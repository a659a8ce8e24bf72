"""What the huggingface engine saves is loaded by transformers and peft alone, and has the weights that were trained."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_training.checkpoint.adapter import require_mergeable
from arctic_training.checkpoint.huggingface import HFCheckpointConfig, HFCheckpointEngine
from arctic_training.distributed import process_group
from arctic_training.engine.config import deepspeed_config
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.initialize import initialize
from arctic_training.engine.zero import full_parameter, is_partitioned, sharded_construction
from arctic_training.errors.types import RecipeError
from arctic_training.state import Progress, RunState
from tests import processes, tiny
from tests.engine import small

LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"], "init_lora_weights": False}


def train(source: Path, stage: int, dtype: str, lora: dict[str, Any] | None = None) -> tuple[TrainedEngine, Any]:
    """A model after two updates, and its tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = small.recipe(dtype=dtype, zero_optimization={"stage": stage, "stage3_param_persistence_threshold": 100})
    settings = deepspeed_config(config, world=process_group.world_size())
    with sharded_construction(settings):
        types = {"bf16": torch.bfloat16, "fp32": torch.float32}
        model = AutoModelForCausalLM.from_pretrained(source, dtype=types[dtype])
    assert is_partitioned(model) == (stage == 3)
    if lora:
        model = get_peft_model(model, LoraConfig(**lora))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    engine = initialize(config, model, optimizer, schedule)
    engine.train()
    for number in range(2):
        ids = torch.randint(0, 320, (1, 12), generator=torch.Generator().manual_seed(number + process_group.rank()))
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    return engine, AutoTokenizer.from_pretrained(source)


def save(engine: TrainedEngine, tokenizer: Any, folder: Path, **section: Any) -> Path:
    view: Any = SimpleNamespace(
        run_dir=folder,
        progress=Progress(step=2),
        tokenizer=tokenizer,
        engines={"model": engine},
        config=None,
        averaged=lambda role, purpose: nullcontext(),
        export_files=lambda: {"1_Pooling/config.json": "{}"},
    )
    checkpointer = HFCheckpointEngine(view, HFCheckpointConfig(output_dir=folder, on_save_error="stop", **section))()
    return checkpointer.save({"model": engine}, RunState()) or folder


def full_tensors(engine: TrainedEngine) -> dict[str, torch.Tensor]:
    named = engine.module.named_parameters(remove_duplicate=False)
    return {name: full_parameter(parameter).cpu() for name, parameter in named}


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(20)[None] % 300
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits  # type: ignore[no-any-return]


def plain_models(root: Path) -> list[str]:
    """Whole models at every stage that parts weights in its own way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    process_group.init_process_group()
    wrong = []
    for stage, dtype, source, limit in (
        (0, "bf16", "tied", 10**9),
        (1, "bf16", "untied", 40_000),
        (3, "bf16", "tied", 40_000),
        (3, "fp32", "untied", 10**9),
    ):
        case = f"{stage}_{dtype}_{source}"
        engine, tokenizer = train(root / source, stage, dtype)
        folder = save(engine, tokenizer, root / "out" / case, max_shard_size=limit)
        expected = full_tensors(engine)
        engine.destroy()
        if process_group.is_main():
            files = sorted(folder.glob("*.safetensors"))
            if any(one.stat().st_size > limit + 20_000 for one in files) or (len(files) > 1) != (limit < 10**9):
                wrong.append(f"{case}: files {[(one.name, one.stat().st_size) for one in files]}")
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
            parameters = dict(loaded.named_parameters(remove_duplicate=False))
            wrong += [f"{case}: {name}" for name in small.differing(parameters, expected)]
            if loaded.generation_config.eos_token_id != 3:
                wrong.append(f"{case}: generation config")
            if AutoTokenizer.from_pretrained(folder).chat_template != tiny.CHAT_TEMPLATE:
                wrong.append(f"{case}: chat template")
        process_group.barrier()
    return wrong


def adapters(root: Path) -> list[str]:
    """LoRA as an adapter and merged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    process_group.init_process_group()
    wrong = []
    for stage in (0, 3):
        engine, tokenizer = train(root / "untied", stage, "fp32", LORA)
        apart = save(engine, tokenizer, root / "out" / f"adapter_{stage}")
        merged = save(engine, tokenizer, root / "out" / f"merged_{stage}", merge_adapter=True, max_shard_size=60_000)
        expected = logits(engine.module if stage < 3 else engine)
        engine.destroy()
        if process_group.is_main():
            if list(apart.glob("model*.safetensors")):
                wrong.append(f"{stage}: the adapter was saved with the base model")
            base = AutoModelForCausalLM.from_pretrained(root / "untied", dtype=torch.float32)
            for name, loaded in (
                ("adapter", PeftModel.from_pretrained(base, apart)),
                ("merged", AutoModelForCausalLM.from_pretrained(merged, dtype="auto")),
            ):
                off = (logits(loaded) - expected).abs().max().item()
                if not off < 1e-5:
                    wrong.append(f"{stage}: {name} is off by {off}")
        process_group.barrier()
    return wrong


@pytest.mark.parametrize(
    ("tied", "more", "why"),
    [
        (False, {"use_dora": True}, "use_dora"),
        (False, {"trainable_token_indices": [5, 6]}, "trainable_token_indices"),
        (True, {"target_modules": ["q_proj", "embed_tokens"]}, "embeddings that are also"),
        (True, {"modules_to_save": ["lm_head"]}, "embeddings that are also"),
        (False, {"peft_type": "IA3", "feedforward_modules": []}, "IA3 is no sum"),
        (True, {}, ""),
        (False, {"target_modules": ["q_proj", "embed_tokens"]}, ""),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_that_is_no_sum_of_weights_is_not_merged(
    tiny_model: Path, tied: bool, more: dict[str, Any], why: str
) -> None:
    from peft import get_peft_config, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = tied
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **more}
    adapted = get_peft_model(model, get_peft_config(adapter))
    if why:
        with pytest.raises(RecipeError, match=f"merge_adapter: only plain LoRA .* this has {why}"):
            require_mergeable(adapted)
    else:
        require_mergeable(adapted)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    tiny.save_model(root / "untied")
    tiny.save_model(root / "tied", tie_word_embeddings=True)
    return root


@pytest.mark.parametrize("world", [1, 2])
def test_a_model_loads_again_with_the_weights_that_were_trained(sources: Path, world: int, tmp_path: Path) -> None:
    (tmp_path / "tied").symlink_to(sources / "tied")
    (tmp_path / "untied").symlink_to(sources / "untied")
    assert processes.share(plain_models, world, tmp_path) == [[]] * world


@pytest.mark.parametrize("world", [1, 2])
def test_an_adapter_loads_again_apart_and_merged(sources: Path, world: int, tmp_path: Path) -> None:
    (tmp_path / "untied").symlink_to(sources / "untied")
    assert processes.share(adapters, world, tmp_path) == [[]] * world


def test_what_it_cannot_save_is_refused_at_the_start(tmp_path: Path) -> None:
    view: Any = SimpleNamespace(run_dir=tmp_path, engines={"model": SimpleNamespace(module=small.Net())})
    with pytest.raises(RecipeError, match="cannot save model, a Net"):
        HFCheckpointEngine(view, HFCheckpointConfig())()
