"""Generate and score, on a tiny model with random weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_training import Callback, SFTTrainer, get_config
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.component import parse_component
from arctic_training.distributed import process_group
from arctic_training.errors.types import DataError, InputError, ScoringError
from arctic_training.evaluation.evaluator import Evaluator
from arctic_training.evaluation.generate import GenerateEvaluator
from arctic_training.evaluation.scorer import Scorer
from arctic_training.generation.prompts import Prompt
from tests import processes, tiny

PROMPTS = ["one", "two three four", "what is the sum of five and six please", "no"]


def samples_for(tokenizer: Any, answers: list[str]) -> list[dict[str, list[int]]]:
    """Tokenized chats of one turn, the answer and its end token being the target."""
    rows = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n").input_ids
        target = tokenizer(f"{answer}<|im_end|>").input_ids
        after = tokenizer("\n").input_ids
        rows.append({"input_ids": ids + target + after, "labels": [-100] * len(ids) + target + [-100] * len(after)})
    return rows


def run_of(folder: Path, run_dir: Path, answers: list[str]) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return SimpleNamespace(
        tokenizer=tokenizer,
        engines={"model": SimpleNamespace(module=model)},
        eval_loaders={"held_out": SimpleNamespace(dataset=samples_for(tokenizer, answers))},
        device=torch.device("cpu"),
        progress=SimpleNamespace(step=7),
        run_dir=run_dir,
        config=SimpleNamespace(mesh=SimpleNamespace(model=1)),
    )


def evaluator(**options: Any) -> Evaluator:
    config = parse_component("evaluator", {"type": "generate", "max_new_tokens": 8, **options})
    return GenerateEvaluator(config)  # type: ignore[arg-type]


def greedy(folder: Path) -> list[str]:
    """What the model answers to each prompt alone, by the simplest loop."""
    run = run_of(folder, folder, [""] * 4)
    texts = []
    for row in run.eval_loaders["held_out"].dataset:
        question = Prompt.from_sample(row, "")
        ids = torch.tensor([question.prompt_ids])
        for _ in range(8):
            with torch.no_grad():
                token = run.engines["model"].module(ids).logits[0, -1].argmax()
            if int(token) == run.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, token.view(1, 1)], 1)
        texts.append(run.tokenizer.decode(ids[0, len(question.prompt_ids) :], skip_special_tokens=True))
    return texts


def test_answers_are_those_of_a_plain_greedy_loop_one_by_one(tiny_model: Path, tmp_path: Path) -> None:
    completions = greedy(tiny_model)
    run = run_of(tiny_model, tmp_path, [*completions[:3], "not this"])
    with torch.no_grad():
        measured = evaluator(batch_size=3, scorers=["exact_match", "contains"])(run)
    assert measured["exact_match/held_out"] == 0.75
    kept = [json.loads(line) for line in (tmp_path / "generations/held_out/step_7.jsonl").read_text().splitlines()]
    assert [row["generated"] for row in kept] == completions
    assert [row["sample"] for row in kept] == [1, 2, 3, 4]
    assert [row["exact_match"] for row in kept] == [1, 1, 1, 0]
    assert [row["correct"] for row in kept] == [True, True, True, False]
    assert kept[3]["reference"] == "not this"
    assert "<|im_start|>user\ntwo three four<|im_end|>" in kept[1]["problem"]


def test_only_the_first_samples_where_so_many_are_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model, tmp_path, ["x"] * 4)
    evaluator(max_samples=2)(run)
    assert len((tmp_path / "generations/held_out/step_7.jsonl").read_text().splitlines()) == 2


def test_nothing_is_kept_where_nothing_is_to_be(tiny_model: Path, tmp_path: Path) -> None:
    evaluator(save=False)(run_of(tiny_model, tmp_path, ["x"] * 4))
    assert not list(tmp_path.iterdir())


def test_a_temperature_draws_the_same_again(tiny_model: Path, tmp_path: Path) -> None:
    kept = []
    for name in ("a", "b", "c"):
        run = run_of(tiny_model, tmp_path / name, ["x"] * 4)
        evaluator(temperature=1.0, seed=2 if name == "c" else 1)(run)
        kept.append((tmp_path / name / "generations/held_out/step_7.jsonl").read_text())
    assert kept[0] == kept[1] != kept[2]


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(tiny_model: Path, tmp_path: Path) -> None:
    completions = greedy(tiny_model)
    stop = completions[0][1]
    run = run_of(tiny_model, tmp_path, [completions[0].split(stop)[0], "x", "x", "x"])
    evaluator(stop=[stop])(run)
    kept = [json.loads(line) for line in (tmp_path / "generations/held_out/step_7.jsonl").read_text().splitlines()]
    assert kept[0]["generated"] == completions[0].split(stop)[0]


def test_attention_for_packed_rows_answers_the_same(tiny_model: Path, tmp_path: Path) -> None:
    from arctic_training.model import attention

    attention.register()
    run = run_of(tiny_model, tmp_path, greedy(tiny_model))
    run.engines["model"].module.set_attn_implementation(attention.NAME)
    attention.add_packing_hooks(run.engines["model"].module)
    assert evaluator()(run) == {"exact_match/held_out": 1.0}


PAIRS = [("one", "two"), ("three four five six", "seven"), ("add one and two", "three yes"), ("say no", "no no")]


def seq2seq(kind: str) -> Any:
    """A model of an encoder and a decoder, too small to know anything."""
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    ids = {"vocab_size": 320, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 2}
    if kind == "t5":
        shape = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
        return T5ForConditionalGeneration(T5Config(**ids, **shape))  # type: ignore[arg-type]
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32, "max_position_embeddings": 32}
    more = {"bos_token_id": 2, "forced_eos_token_id": None, "dropout": 0.0}
    return BartForConditionalGeneration(BartConfig(**ids, **layers, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_model_with_an_encoder_answers_what_it_has_learned(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model, tmp_path, ["x"] * 4)
    tokenizer = run.tokenizer
    rows = [{"input_ids": tokenizer(a).input_ids, "labels": [*tokenizer(b).input_ids, 3, -100]} for a, b in PAIRS]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = seq2seq(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(160):
        row = rows[step % 4]
        model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    run.engines["model"].module = model.eval()
    run.eval_loaders = {"held_out": SimpleNamespace(dataset=rows)}
    assert evaluator(batch_size=3)(run) == {"exact_match/held_out": 1.0}
    kept = [json.loads(line) for line in (tmp_path / "generations/held_out/step_7.jsonl").read_text().splitlines()]
    assert [(row["problem"], row["generated"], row["reference"]) for row in kept] == [(a, b, b) for a, b in PAIRS]


def test_an_encoder_is_asked_the_row_and_answers_its_labels() -> None:
    sample = {"input_ids": [5, 6, 7], "labels": [8, 9, -100, -100]}
    assert Prompt.from_sample(sample, "set, sample 1", encoder_decoder=True) == Prompt([5, 6, 7], [8, 9])
    with pytest.raises(DataError, match="set, sample 1: there is no answer in its labels"):
        Prompt.from_sample({**sample, "labels": [-100]}, "set, sample 1", encoder_decoder=True)


def test_the_last_answer_of_several_turns_is_asked_for() -> None:
    question = Prompt.from_sample(
        {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, 6, -100, 8, 9, -100]}, "set, sample 1"
    )
    assert question == Prompt([5, 6, 7], [8, 9])


@pytest.mark.parametrize(
    ("labels", "message"),
    [([-100, -100], "no answer in its labels"), ([5, 6], "no prompt before its answer")],
)
def test_a_sample_that_asks_nothing_is_named(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=f"set, sample 3: there is {message}"):
        Prompt.from_sample({"input_ids": [5, 6], "labels": labels}, "set, sample 3")


def test_what_cannot_generate_is_refused(tmp_path: Path) -> None:
    run = SimpleNamespace(tokenizer=object(), engines={"model": SimpleNamespace(module=torch.nn.Linear(1, 1))})
    with pytest.raises(InputError, match="Linear does not"):
        evaluator().check(run)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a tokenizer"):
        evaluator()(SimpleNamespace(tokenizer=None))  # type: ignore[arg-type]


def share(folder: str, run_dir: str, answers: list[str]) -> dict[str, float]:
    process_group.init_process_group()
    run = run_of(Path(folder), Path(run_dir), answers)
    measured = evaluator(batch_size=1)(run)
    process_group.destroy_process_group()
    return measured


def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model")
    completions = greedy(folder)
    run = run_of(folder, tmp_path / "one", [completions[0], "x", completions[2], completions[3]])
    alone = evaluator()(run)
    both = processes.run(
        share, 2, str(folder), str(tmp_path / "two"), [completions[0], "x", completions[2], completions[3]]
    )
    assert both == [alone, alone] == [{"exact_match/held_out": 0.75}] * 2
    name = "generations/held_out/step_7.jsonl"
    assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def evaluated(model: str, chats: str, run_dir: str, stage: int, peft: dict[str, Any] | None = None) -> dict[str, float]:
    recipe: dict[str, Any] = {
        "type": "sft",
        "output_dir": run_dir,
        "model": {"name_or_path": model, "dtype": "fp32"} | ({"peft_config": peft} if peft else {}),
        "data": {"sources": [chats], "eval_sources": [chats], "max_length": 256, "pack_samples": not peft},
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "evaluators": [{"type": "generate", "scorers": ["exact_match", "contains"], "max_new_tokens": 5}],
    }
    trainer = SFTTrainer(get_config(recipe))
    measured = trainer.evaluate()
    trainer.close()
    process_group.destroy_process_group()
    return measured


def test_partitioned_weights_answer_as_whole_ones_do(tmp_path: Path) -> None:
    """Seven samples on two ranks, so that one rank generates once more than it has samples."""
    model, chats = tiny.save_model(tmp_path / "model"), tiny.save_chats(tmp_path / "chats.jsonl", 7)
    name = "generations/eval/step_0.jsonl"
    processes.run(evaluated, 1, str(model), str(chats), str(tmp_path / "whole"), 0)
    first, second = processes.run(evaluated, 2, str(model), str(chats), str(tmp_path / "parts"), 3)
    assert first == second
    assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_virtual_tokens_and_partitioned_weights_are_refused_together(tiny_model: Path, tmp_path: Path) -> None:
    chats, peft = tiny.save_chats(tmp_path / "chats.jsonl", 7), {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
    with pytest.raises(InputError, match=r"^evaluators: 'generate': with an adapter of virtual tokens, .*stage: 2"):
        evaluated(str(tiny_model), str(chats), str(tmp_path / "run"), 3, peft)


class PickyConfig(ComponentConfig):
    raises: bool = False


class Picky(Scorer):
    """Judges no answer to a long reference; raises, if configured so, on all that are wrong."""

    name = "picky_for_tests"
    config_type = PickyConfig

    def __call__(self, generated: str, reference: str) -> float | None:
        if self.config.raises and generated != reference:
            raise ConnectionError("nobody answers")
        return None if len(reference) > 3 else float(generated == reference)


def test_a_scorer_that_gives_none_abstains(tiny_model: Path, tmp_path: Path) -> None:
    right = greedy(tiny_model)[0]
    run = run_of(tiny_model, tmp_path, [right, "no", "wrong", "wrong"])
    measured = evaluator(scorers=["picky_for_tests", "exact_match"])(run)
    judged = [float(n == 0) for n, reference in enumerate([right, "no", "wrong", "wrong"]) if len(reference) <= 3]
    assert measured["picky_for_tests/held_out"] == sum(judged) / len(judged)
    assert measured["abstained/picky_for_tests/held_out"] == 1 - len(judged) / 4
    assert measured["exact_match/held_out"] == 0.25 and "abstained/exact_match/held_out" not in measured
    kept = [json.loads(line) for line in (tmp_path / "generations/held_out/step_7.jsonl").read_text().splitlines()]
    assert [row["picky_for_tests"] is None for row in kept] == [len(right) > 3, False, True, True]


def test_a_scorer_that_raises_names_the_answer(tiny_model: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model, tmp_path, [greedy(tiny_model)[0], "wrong", "wrong", "wrong"])
    evaluate = evaluator(scorers=[{"type": "picky_for_tests", "raises": True}], retries=0)
    evaluate.check(run)  # the references of first samples are right
    with pytest.raises(
        ScoringError, match=r"picky_for_tests fails for the completion '.*' of held_out, sample [234]:\n.*nob"
    ):
        evaluate(run)


class Ends(Callback):
    """An error of somebody else's code, between two updates or in the midst of one."""

    name = "ends_for_tests"
    config_type = PickyConfig

    def post_log(self, trainer: Any, values: Any) -> None:
        if trainer.progress.step == 2 and not self.config.raises:
            raise ValueError("on purpose")

    def post_backward(self, trainer: Any) -> None:
        if trainer.progress.step == 2 and self.config.raises:
            raise ValueError("on purpose")


@pytest.mark.parametrize(("midst", "saved"), [(False, ["step_2"]), (True, [])])
def test_a_run_that_an_error_ends_between_updates_is_saved(
    midst: bool, saved: list[str], tiny_model: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    recipe = {
        "type": "sft",
        "output_dir": str(tmp_path / "run"),
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tiny_chats)], "max_length": 400},
        "callbacks": [{"type": "ends_for_tests", "raises": midst}],
        "checkpoint": {"type": "deepspeed"},
        "train_iters": 4,
    }
    trainer = SFTTrainer(get_config(recipe))
    with pytest.raises(ValueError, match="on purpose"):
        trainer.train()
    trainer.close(failed=True)
    assert [one.name for one in (tmp_path / "run/checkpoints/deepspeed").glob("step_*")] == saved


def test_a_scorer_is_named_in_the_recipe() -> None:
    config = parse_component("evaluator", {"type": "generate", "scorers": {"type": "numeric", "tolerance": 0.5}})
    assert [(one.type, one.tolerance) for one in config.scorers] == [("numeric", 0.5)]  # type: ignore[attr-defined]
    assert parse_component("evaluator", "generate").scorers[0].type == "exact_match"  # type: ignore[attr-defined]
    assert Scorer.registered("numeric")
