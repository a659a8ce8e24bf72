"""Tasks: which model is built for one, with which labels, and what is refused before data are prepared."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.engine.engine import FrozenEngine
from arctic_training.errors.types import ModelError, RecipeError
from arctic_training.model import attention
from arctic_training.model.causal_lm import causal_model
from arctic_training.model.checks.packing_isolation import check_packing_isolation
from arctic_training.model.tasks import TASKS
from arctic_training.registry import lookup
from tests import processes, tiny
from tests.model.test_huggingface_factory import change, factory

CLASSES = {
    "causal_lm": "LlamaForCausalLM",
    "sequence_classification": "LlamaForSequenceClassification",
    "token_classification": "LlamaForTokenClassification",
    "encoder": "LlamaModel",
}
LABELS = ["no", "perhaps", "yes"]


def save_bert(folder: Path) -> Path:
    """A tiny BERT that fills in masked tokens: it has neither a pooler nor a classifier."""
    from transformers import BertConfig, BertForMaskedLM

    tiny.save_tokenizer(folder)
    shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**shape, num_attention_heads=4, pad_token_id=0)).save_pretrained(folder)
    return folder


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def section(task: str) -> dict[str, Any]:
    head = {"new_weights": ["score"], "labels": LABELS} if "classification" in task else {}
    return {"task": task, **head}


@pytest.mark.parametrize("task", CLASSES)
def test_what_is_trained_is_what_transformers_loads(task: str, tiny_model: Path, tmp_path: Path) -> None:
    import transformers

    words = tokenizer(tiny_model)
    maker = factory(tiny_model, tokenizer=words, **section(task))
    maker.check()
    maker.check_tokenizer(words)
    model = maker()
    assert type(model).__name__ == CLASSES[task]
    model.save_pretrained(tmp_path / "saved")
    theirs = getattr(transformers, maker.auto_class.__name__).from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    for ours, other in zip(model.eval()(**inputs).to_tuple(), theirs.eval()(**inputs).to_tuple(), strict=True):
        if isinstance(ours, torch.Tensor):
            assert torch.allclose(
                ours[inputs["attention_mask"].bool()] if ours.dim() == 3 else ours,
                other[inputs["attention_mask"].bool()] if ours.dim() == 3 else other,
                atol=1e-6,
            )
    if "classification" in task:
        assert list(theirs.config.id2label.values()) == LABELS
        assert theirs.config.label2id == {"no": 0, "perhaps": 1, "yes": 2}


def test_a_task_that_the_trainer_does_not_train_is_refused_where_it_stands(tiny_model: Path) -> None:
    recipe: dict[str, Any] = {"type": "sft", "data": {"sources": ["x.jsonl"]}}
    model = {"name_or_path": str(tiny_model)}
    for extra, message in (
        ({"task": "sequence_classification"}, r"model\.task: sequence_classification, .* takes causal_lm here"),
        ({"task": "causal"}, r"model\.task: "),
        ({"num_labels": 2}, r"model\.num_labels: a causal language model has no labels"),
    ):
        with pytest.raises(RecipeError, match=message):
            get_config({**recipe, "model": {**model, **extra}})
    reward = {**recipe, "type": "reward"}
    config = get_config({**reward, "model": model})
    assert config.model.task == "sequence_classification"  # type: ignore[attr-defined]
    assert config.model.num_labels == 1  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"model\.num_labels: 3 labels, and the trainer needs 1"):
        get_config({**reward, "model": {**model, "num_labels": 3}})
    with pytest.raises(RecipeError, match="num_labels: 3, and labels names 2"):
        get_config({**reward, "model": {**model, "num_labels": 3, "labels": ["a", "b"]}})


def test_weights_that_the_files_lack_are_named(tiny_model: Path, tmp_path: Path) -> None:
    bert = save_bert(tmp_path / "bert")
    keys: dict[str, Any] = {"task": "sequence_classification", "num_labels": 3}
    for named, missing, hint in (
        ([], "pooler", r"modules with random weights give model\.new_weights: \[classifier, pooler\]"),
        (["pooler"], "classifier", r"a classifier with random weights give model\.new_weights: \[classifier\]"),
        (["classifier"], "pooler", r"a pooler with random weights give model\.new_weights: \[pooler\]"),
    ):
        message = rf"{missing}\.\S+ is missing.*; for {hint}"
        with pytest.raises(ModelError, match=message):
            factory(bert, new_weights=named, **keys).check()
    for named in (["pooler", "classifier"], ["bert.pooler", "classifier.weight", "classifier.bias"]):
        maker = factory(bert, new_weights=named, **keys)
        maker.check()
        assert maker().config.num_labels == 3
    with pytest.raises(ModelError, match=r"model\.new_weights: LlamaForSequenceClassification has no scores; did you"):
        factory(tiny_model, new_weights=["scores"], **keys).check()
    encoder = factory(bert, task="encoder", new_weights=["pooler"])
    encoder.check()
    assert type(encoder()).__name__ == "BertModel"


def test_a_head_of_a_model_whose_weights_are_converted_is_named_too(tmp_path: Path) -> None:
    """transformers fuses the experts in the files of a Mixtral, whose names are others in the model."""
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    MixtralForCausalLM(MixtralConfig(**shape, **heads)).save_pretrained(tmp_path)
    keys: dict[str, Any] = {"task": "sequence_classification", "num_labels": 1}
    with pytest.raises(ModelError, match=r"score\.weight is missing; .* give model\.new_weights: \[score\]"):
        factory(tmp_path, **keys).check()
    factory(tmp_path, new_weights=["score"], **keys).check()
    factory(tmp_path).check()


def test_a_head_of_another_size_is_new_only_where_it_is_named(tiny_model: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"task": "sequence_classification"}
    model = factory(tiny_model, new_weights=["score"], labels=LABELS, **keys)()
    model.save_pretrained(tmp_path)
    trained = factory(tmp_path, **keys)  # with the labels of its own
    trained.check()
    assert torch.equal(trained().score.weight, model.score.weight)
    assert torch.equal(factory(tmp_path, new_weights=["score"], **keys)().score.weight, model.score.weight)
    with pytest.raises(ModelError, match=r"score\.weight is \[3, 32\] in the file, \[2, 32\] by the config"):
        factory(tmp_path, num_labels=2, **keys).check()
    other = factory(tmp_path, num_labels=2, new_weights=["score"], **keys)
    other.check()
    assert other().score.weight.shape == (2, 32)


def test_a_classifier_needs_labels(tiny_model: Path) -> None:
    maker = factory(tiny_model, task="token_classification", new_weights=["score"])
    with pytest.raises(ModelError, match=r"model\.labels: give the names .* LlamaForCausalLM, which has none"):
        maker.check()


def test_rows_of_several_samples_are_refused(tiny_model: Path) -> None:
    maker = factory(tiny_model, data={"pack_samples": True}, **section("sequence_classification"))
    with pytest.raises(ModelError, match=r"data\.pack_samples: LlamaConfig: a .* classifier .* one vector for a row"):
        maker.check()


def test_a_token_classifier_has_the_same_outputs_in_a_packed_row(tiny_model: Path) -> None:
    """Otherwise the run is refused once it has an engine, as are models whose attention goes both ways."""
    from transformers import BertConfig, BertForTokenClassification

    maker = factory(tiny_model, data={"pack_samples": True}, **section("token_classification"))
    maker.check()
    engine = FrozenEngine(maker().eval())
    maker.validate_engine(engine)
    assert causal_model(engine).config._attn_implementation == attention.NAME
    bidirectional = BertForTokenClassification(BertConfig(vocab_size=320, hidden_size=32, num_attention_heads=2))
    with pytest.raises(ModelError, match="samples in one row would see each other"):
        check_packing_isolation(
            FrozenEngine(bidirectional.eval()), torch.device("cpu"), task=TASKS["token_classification"]
        )


def test_padding_is_known_by_the_token_of_the_rows(tiny_model: Path, tmp_path: Path) -> None:
    """A classifier of transformers finds the end of a text by the id of the pad token."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    change(folder, pad_token_id=7)
    words = tokenizer(folder)
    maker = factory(folder, tokenizer=words, **section("sequence_classification"))
    model = maker().eval()
    assert model.config.pad_token_id == words.pad_token_id == 0
    short, padded = torch.tensor([[5, 7, 8]]), torch.tensor([[5, 7, 8, 0, 0]])
    mask = (padded != 0).long()
    assert torch.allclose(model(padded, attention_mask=mask).logits, model(short).logits, atol=1e-6)
    words.pad_token = None
    maker = factory(folder, tokenizer=words, **section("sequence_classification"))
    maker.check()
    with pytest.raises(ModelError, match="pad token of the model is 7, and that of the tokenizer None"):
        maker.check_tokenizer(words)


def test_attention_of_an_encoder_goes_both_ways(tmp_path: Path) -> None:
    model = factory(save_bert(tmp_path / "bert"), task="encoder", new_weights=["pooler"])().eval()
    first, other = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 8]])
    hidden = [model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 0] for ids in (first, other)]
    assert not torch.allclose(*hidden)


LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}


def test_a_new_head_is_trained_and_saved_with_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification

    words = tokenizer(tiny_model)
    for block in ({}, {"zero_optimization": {"stage": 3}}):
        keys = section("sequence_classification")
        maker = factory(tiny_model, tokenizer=words, peft_config=LORA, block=block, **keys)
        maker.check()
        maker.check_tokenizer(words)
    model = factory(tiny_model, tokenizer=words, peft_config=LORA, **section("sequence_classification"))()
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert any("score" in name for name in trained) and any("lora" in name for name in trained)
    model.save_pretrained(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(model.eval()(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-6)


def test_an_adapter_that_leaves_a_new_module_random_is_refused(tmp_path: Path) -> None:
    bert = save_bert(tmp_path / "bert")
    words = tokenizer(bert)
    keys: dict[str, Any] = {"new_weights": ["pooler", "classifier"], "num_labels": 2, "task": "sequence_classification"}
    adapter = {**LORA, "target_modules": ["query"]}
    maker = factory(bert, tokenizer=words, peft_config=adapter, **keys)
    maker.check()
    with pytest.raises(ModelError, match=r"pooler is among model\.new_weights, and nothing would train it"):
        maker.check_tokenizer(words)
    maker = factory(bert, tokenizer=words, peft_config={**adapter, "modules_to_save": ["pooler"]}, **keys)
    maker.check()
    maker.check_tokenizer(words)


def head_after_two_steps(root: str, stage: int, width: int) -> dict[str, Any]:
    """Trains a reward model, whose head is one row, and returns its head before and afterwards."""
    from arctic_training.distributed import process_group
    from arctic_training.engine.zero import full_parameter

    process_group.init_process_group()
    folder = Path(root)
    if process_group.is_main() and not (folder / "model").exists():
        tiny.save_model(folder / "model", hidden_size=width, num_attention_heads=1, num_key_value_heads=1, head_dim=8)
        rows = [{"prompt": "say", "chosen": " yes" * n, "rejected": " no" * n} for n in range(1, 9)]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    process_group.barrier()
    recipe = {
        "type": "reward",
        "model": {"name_or_path": str(folder / "model"), "new_weights": ["score"], "dtype": "fp32"},
        "data": {"sources": [str(folder / "pairs.jsonl")], "max_length": 64, "cache_dir": str(folder / "cache")},
        "optimizer": {"type": "sgd", "lr": 0.1},
        "scheduler": {"warmup_ratio": 0},
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "micro_batch_size": 4 // process_group.world_size(),
        "train_iters": 2,
        "output_dir": str(folder / f"run_{stage}_{process_group.world_size()}"),
        "logger": {"level": "ERROR"},
        "loss_log_interval": 0,
    }
    trainer: Any = lookup("trainer", "reward")(get_config(recipe))  # type: ignore[call-arg]
    head = trainer.model.module.score.weight
    before = full_parameter(head)
    trainer.train()
    after = full_parameter(head)
    trainer.close()
    return {"before": before, "after": after}


def test_a_head_of_one_row_trains_alike_at_every_stage(tmp_path: Path) -> None:
    """Also where the number of weights is odd, and no rank has as many elements as another."""
    (expected,) = processes.share(head_after_two_steps, 1, str(tmp_path), 0, 33)
    assert not torch.equal(expected["before"], expected["after"])
    for world, stage in ((1, 3), (2, 2), (2, 3)):
        for result in processes.share(head_after_two_steps, world, str(tmp_path), stage, 33):
            assert torch.equal(result["before"], expected["before"]), f"stage {stage} draws another head"
            assert torch.allclose(result["after"], expected["after"], atol=1e-6)
