"""Components written as ArcticTraining 0.8 has them: annotations, checkpoint engines of a model, trainer attributes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_training import CheckpointEngine, HFModelFactory, ModelConfig, SFTTrainer, TrainerConfig, get_config, logger
from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.checkpoint.folder import read_manifest
from arctic_training.model import attention
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class ScaledConfig(ModelConfig):
    factor: float = 1.0
    """What the output layer is multiplied with."""


class ScaledFactory(HFModelFactory):
    """Multiplies the output layer, in a callback."""

    name = "former_scaled"
    config: ScaledConfig  # type: ignore[assignment]

    def post_create_model_callback(self, model: Any) -> Any:
        assert (self.device, self.global_rank, self.world_size) == (self.trainer.device, 0, 1)
        model.lm_head.weight.data *= self.config.factor
        return model


with pytest.warns(FutureWarning, match="HeadEngine.save"):

    class HeadEngine(CheckpointEngine[Any]):
        """Saves the output layer alone."""

        name = "former_head"

        def save(self, model: Any) -> None:  # type: ignore[override]
            assert (self.device, self.global_rank, self.world_size) == (model.device, 0, 1)
            assert self.checkpoint_dir == self.config.output_dir
            torch.save(model.module.lm_head.state_dict(), self.config.output_dir / "head.pt")

        def load(self, model: Any) -> None:  # type: ignore[override]
            model.module.lm_head.load_state_dict(torch.load(self.checkpoint_dir / "head.pt"))


class FormerConfig(TrainerConfig):
    stop_at: int = 0
    """The step after which it sets early_stop."""


class FormerTrainer(SFTTrainer):
    """Reads the attributes that a trainer had."""

    name = "former"
    config: FormerConfig
    model_factory: ScaledFactory
    checkpoint_engine: DeepSpeedCheckpointEngine | HeadEngine

    def step(self, batch: Any) -> None:
        super().step(batch)
        if self.config.stop_at and self.global_step + 1 == self.config.stop_at:
            self.early_stop = True


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    return {
        "type": "former",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32", "factor": 0.5},
        "data": {"sources": [str(tiny.save_chats(tmp_path / "chats.jsonl", 8))], "max_length": 400},
        "checkpoint": {"type": "former_head", "save_every_n_steps": 1, "auto_resume": True},
        "output_dir": str(tmp_path / "run"),
        "loss_log_interval": 0,
        "label_smoothing": 0.1,
    }


def test_annotations_choose() -> None:
    assert FormerTrainer.model_factory_type == (ScaledFactory,)
    assert FormerTrainer.checkpoint_engine_type == (DeepSpeedCheckpointEngine, HeadEngine)
    assert issubclass(ScaledFactory.config_type, ScaledConfig)
    assert {"factor", "name_or_path"} <= ScaledFactory.config_type.model_fields.keys()
    assert {"stop_at", "label_smoothing"} <= FormerTrainer.config_type.model_fields.keys()


def test_a_run_of_former_components_saves_stops_and_resumes(recipe: dict[str, Any]) -> None:
    before = json.dumps(recipe)
    trainer: Any = FormerTrainer(get_config({**recipe, "stop_at": 3}))
    first = trainer.model_unwrapped.lm_head.weight.detach().clone()
    trainer.train()
    assert (trainer.global_step, trainer.epoch_idx, trainer.world_size, trainer.global_rank) == (3, 0, 1, 0)
    assert trainer.early_stop
    assert trainer.training_finished and trainer.checkpoint_engines[0].name == "former_head"
    assert trainer.optimizer is trainer.model.optimizer and trainer.scheduler is trainer.model.lr_scheduler
    with pytest.warns(FutureWarning, match=r"removed; write engine\.deepspeed\.get_global_grad_norm"):
        assert trainer.model.get_global_grad_norm() == trainer.model.grad_norm
    head = trainer.model_unwrapped.lm_head.weight.detach().clone()
    assert not torch.equal(head, first)
    trainer.close()
    folder = Path(recipe["output_dir"]) / "checkpoints" / "former_head" / "step_3"
    assert read_manifest(folder)["type"] == "former_head"
    assert torch.equal(torch.load(folder / "head.pt")["weight"], head)
    again: Any = FormerTrainer(get_config({**recipe, "allow_changes": ["stop_at", "stop"]}))
    assert again.global_step == 3 and torch.equal(again.model_unwrapped.lm_head.weight, head)
    again.train()
    assert again.global_step == 8
    again.close()
    assert json.dumps(recipe) == before


def test_the_factor_of_the_own_section_reaches_the_model(recipe: dict[str, Any], tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    trainer = FormerTrainer(get_config({**recipe, "checkpoint": []}))
    expected = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).lm_head.weight * 0.5
    assert torch.equal(trainer.model.module.get_parameter("lm_head.weight"), expected)
    trainer.close()


def test_attributes_say_what_they_are_called_now(recipe: dict[str, Any]) -> None:
    trainer: Any = FormerTrainer(get_config({**recipe, "checkpoint": []}))
    for name, now in (("global_step", "trainer.progress.step"), ("world_size", r"arctic_training.world_size\(\)")):
        with pytest.warns(FutureWarning, match=f"trainer.{name} will be removed; write {now}") as warned:
            getattr(trainer, name)
        assert warned[0].filename == __file__
    assert trainer.sp_group is None
    heard: list[int] = []
    trainer.callbacks.append(("post-step", lambda it: heard.append(it.progress.step)))
    trainer.train()
    assert len(heard) == 8
    trainer.close()


def test_flash_attention_is_per_document_where_processes_share_sequences(recipe: dict[str, Any]) -> None:
    messages: list[str] = []
    sink = logger.add(lambda line: messages.append(line.record["message"]), level="INFO")
    section = {key: one for key, one in recipe["model"].items() if key != "factor"}
    section["attn_implementation"] = "flash_attention_2"
    config: Any = get_config({**recipe, "type": "sft", "checkpoint": [], "sequence_parallel_size": 2, "model": section})
    view: Any = SimpleNamespace(config=config, packs_samples=False, device=torch.device("cpu"), tokenizer=None)
    factory = HFModelFactory(view, config.model)
    factory.check()
    logger.remove(sink)
    assert factory.meta_model.config._attn_implementation == attention.NAME  # type: ignore[union-attr]
    assert any("flash_attention_2 is documents here" in message for message in messages)
