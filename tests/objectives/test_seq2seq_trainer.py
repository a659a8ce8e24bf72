"""Sequence to sequence: losses and gradients are transformers' own, and a saved model answers as the trained one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.errors.types import DataError, ModelError
from tests import tiny
from tests.objectives.tiny_runs import loss_and_gradients, make_trainer, train

PAIRS = [("one", "two"), ("three four five six", "seven"), ("add one and two", "three yes"), ("say no", "no no")]
KINDS = ["t5", "bart", "marian"]


def rows(folder: Path, pairs: list[tuple[str, str]] = PAIRS, columns: tuple[str, str] = ("source", "target")) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(dict(zip(columns, pair, strict=True))) + "\n" for pair in pairs))
    return str(path)


def make(folder: Path, kind: str = "t5", *, data: dict[str, Any] | None = None, **keys: Any) -> Any:
    """A trainer of an encoder-decoder, or of a decoder-only model for the kind "llama"."""
    if not (model := folder / kind).exists():
        save = tiny.save_model if kind == "llama" else tiny.save_encoder_decoder
        save(model, **({} if kind == "llama" else {"kind": kind}))
    section = {"name_or_path": str(model), "dtype": "fp32"}
    section |= {"task": "causal_lm"} if kind == "llama" else {}
    data = data or {"sources": [rows(folder)]}
    data = {"max_length": 32, "cache_dir": str(folder / "cache"), **data}
    return make_trainer(folder, {"model": section, "data": data}, type="seq2seq", **keys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_transformers(kind: str, smoothing: float, tmp_path: Path) -> None:
    trainer = make(tmp_path, kind, label_smoothing=smoothing, micro_batch_size=4)
    model, batch = trainer.model.module, next(iter(trainer.train_batches))
    if kind != "t5":  # zero when it is new, and part of the logits of a trained model
        model.final_logits_bias.copy_(torch.linspace(-2, 2, 320)[None])
    assert (batch["labels"][:, 0] != -100).all()  # the first label counts
    # rows one by one, without padding, as transformers computes them
    total, count = torch.zeros(()), 0
    for row in range(4):
        source = batch["input_ids"][row][batch["attention_mask"][row] == 1][None]
        labels = batch["labels"][row][batch["labels"][row] != -100][None]
        output = model(input_ids=source, labels=labels)
        losses = torch.nn.functional.cross_entropy(
            output.logits[0], labels[0], reduction="sum", label_smoothing=smoothing
        )
        if not smoothing:
            assert losses.item() == pytest.approx(output.loss.item() * labels.shape[1], rel=1e-5)
        total, count = total + losses, count + labels.shape[1]
    parameters = [one for one in model.parameters() if one.requires_grad]
    expected = torch.autograd.grad(total / count, parameters)
    loss, gradients = loss_and_gradients(trainer, batch)
    assert loss == pytest.approx(total.item() / count, rel=1e-5)
    assert batch["num_items_in_batch"] == count
    for got, gradient in zip(gradients, expected, strict=True):
        assert torch.allclose(got, gradient, atol=1e-5 * float(gradient.abs().max() + 1e-3))
    trainer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_computed_at_labels_only(kind: str, tmp_path: Path) -> None:
    trainer = make(tmp_path, kind, micro_batch_size=4)
    shapes: list[tuple[int, ...]] = []
    trainer.model.module.lm_head.register_forward_hook(lambda _, args, output: shapes.append(tuple(output.shape)))
    trainer.loss(next(iter(trainer.train_batches)))
    assert shapes == [()]  # the head returns the sum of losses
    trainer.close()


def test_a_decoder_only_model_learns_the_target_behind_its_source(tmp_path: Path) -> None:
    trainer = make(tmp_path, "llama", data={"sources": [rows(tmp_path, columns=("prompt", "completion"))]})
    model, tokenizer = trainer.model.module, trainer.tokenizer
    sample = trainer.train_loader.dataset[0]
    ids = [*tokenizer(PAIRS[0][0])["input_ids"], *tokenizer(PAIRS[0][1])["input_ids"], tokenizer.eos_token_id]
    assert [*sample["input_ids"], *sample["completion_ids"]] == ids
    batch = next(iter(trainer.train_batches))
    labels = batch["labels"]
    plain = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    count = int((labels != -100).sum())
    assert trainer.loss(batch).item() == pytest.approx(plain.item() * count / batch["num_items_in_batch"], rel=1e-5)
    trainer.close()


def test_a_batch_without_labels_has_a_loss_of_zero(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    batch = next(iter(trainer.train_batches))
    loss, gradients = loss_and_gradients(trainer, {**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert loss == 0 and not any(gradient.any() for gradient in gradients)
    trainer.close()


@pytest.mark.parametrize("kind", ["t5", "bart", "llama"])
def test_it_learns_its_pairs_and_transformers_alone_answers_the_same(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    columns = ("prompt", "completion") if kind == "llama" else ("source", "target")
    source = rows(tmp_path, columns=columns)
    trainer = make(
        tmp_path,
        kind,
        data={"sources": [source], "eval_sources": [source]},
        optimizer={"type": "adamw", "lr": 5e-3},
        micro_batch_size=4,
        train_iters=60,
        scheduler={"name": "constant"},
        evaluators=[{"type": "generate", "max_new_tokens": 8, "batch_size": 3}],
        checkpoint={"type": "huggingface", "output_dir": str(tmp_path / "saved"), "save_end_of_training": True},
    )
    trainer.train()
    measured = trainer.evaluate()
    assert measured["exact_match/eval"] == 1.0 and measured["loss/eval"] < 0.5
    assert measured["token_accuracy/eval"] == 1.0
    trainer.close()
    folder = tmp_path / "saved" / "step_60"
    auto: Any = AutoModelForCausalLM if kind == "llama" else AutoModelForSeq2SeqLM
    model, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for problem, answer in PAIRS:
        ids = tokenizer(problem, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=8, do_sample=False)[0]
        generated = out[ids.shape[1] :] if kind == "llama" else out
        assert tokenizer.decode(generated, skip_special_tokens=True) == answer


def sharded(folder: str, stage: int) -> dict[str, torch.Tensor]:
    from arctic_training.distributed import process_group

    process_group.init_process_group()
    name = f"run_{stage}_{process_group.world_size()}"
    trainer = make(
        Path(folder),
        "t5",
        micro_batch_size=4 // process_group.world_size(),
        deepspeed={"zero_optimization": {"stage": stage}, "gradient_clipping": 0},
        output_dir=str(Path(folder) / name),
    )
    return train(trainer)


def test_two_processes_train_what_one_does_at_every_stage(tmp_path: Path) -> None:
    from tests import processes

    tiny.save_encoder_decoder(tmp_path / "t5")
    (alone,) = processes.share(sharded, 1, str(tmp_path), 0)
    for stage in (1, 2, 3):
        for weights in processes.share(sharded, 2, str(tmp_path), stage):
            for name, weight in alone.items():
                assert torch.allclose(weights[name].reshape(weight.shape), weight, atol=1e-5), (stage, name)


def test_a_model_that_its_factory_does_not_describe_is_refused(tmp_path: Path) -> None:
    from arctic_training import HFModelFactory

    class Undescribed(HFModelFactory):
        name = "undescribed_for_tests"

        @property
        def auto_class(self) -> Any:
            from transformers import AutoModelForSeq2SeqLM

            return AutoModelForSeq2SeqLM

        def create_config(self) -> Any:
            return None

        def create_model(self, config: Any) -> Any:
            return tiny.encoder_decoder("t5")

        def check(self) -> None:
            pass

        def validate_engine(self, engine: Any) -> None:
            pass

    rows(tmp_path)
    tiny.save_encoder_decoder(tmp_path / "t5")
    tokenizer = {"name_or_path": str(tmp_path / "t5")}
    with pytest.raises(ModelError, match="is an encoder-decoder, unlike the config that create_config"):
        make(tmp_path, model={"type": "undescribed_for_tests"}, tokenizer=tokenizer, skip_validation=True)


def test_a_chat_of_several_turns_needs_a_template(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "one"} for role in ("user", "assistant", "user", "assistant")]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(DataError, match=r"chats.jsonl:1: the tokenizer has no chat template"):
        make(tmp_path, data={"sources": [str(path)]})


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_adapter_learns_and_the_model_stays(kind: str, tmp_path: Path) -> None:
    modules = {"t5": ["q", "v"], "bart": ["q_proj", "v_proj"]}[kind]
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": modules}
    trainer = make(tmp_path, kind, model={"peft_config": adapter}, optimizer={"type": "adamw", "lr": 1e-2})
    before = {name: one.clone() for name, one in trainer.model.module.named_parameters() if not one.requires_grad}
    losses: list[float] = []
    trainer.listen("post-loss", lambda _, loss: losses.append(float(loss.detach())))
    trainer.train()
    assert all(
        torch.equal(one, before[name]) for name, one in trainer.model.module.named_parameters() if name in before
    )
    assert losses[-1] != losses[0]
    trainer.close()


def test_a_stream_of_pairs_is_truncated_as_it_is_read(tmp_path: Path) -> None:
    source = {"name_or_path": rows(tmp_path, PAIRS * 3), "streaming": True}
    data = {"sources": [source], "max_length": 4, "max_source_length": 6, "filter_samples": False, "stream_buffer": 4}
    trainer = make(tmp_path, data={**data, "cache_dir": str(tmp_path / "cache"), "div_length": 1}, micro_batch_size=2)
    shapes: list[tuple[int, int]] = []
    trainer.listen("pre-loss", lambda _, batch: shapes.append((batch["input_ids"].shape[1], batch["labels"].shape[1])))
    trainer.train()
    trainer.close()
    assert len(shapes) == 3 and max(source for source, _ in shapes) <= 6 and max(target for _, target in shapes) <= 4


def test_rows_of_tokens_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text(json.dumps({"input_ids": [5, 6, 7, 3], "completion_ids": [8, 3]}) + "\n")
    trainer = make(tmp_path, data={"sources": [{"name_or_path": str(path), "process": False}], "div_length": 1})
    batch = next(iter(trainer.train_batches))
    assert batch["input_ids"].tolist() == [[5, 6, 7, 3]] and batch["labels"].tolist() == [[8, 3]]
    trainer.close()
    path.write_text(json.dumps({"input_ids": [5, 6, 7, 3], "completion_ids": [8, 320]}) + "\n")
    with pytest.raises(DataError, match="completion_ids: 320 is no token of the tokenizer"):
        make(
            tmp_path, data={"sources": [{"name_or_path": str(path), "process": False}]}, output_dir=str(tmp_path / "b")
        )
