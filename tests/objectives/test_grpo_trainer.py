"""Group relative policy optimization on a tiny model: what is sampled and judged, and that no cut changes anything."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch

from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.distributed import process_group
from arctic_training.errors.types import ModelError, NonFiniteError, RecipeError, ScoringError
from arctic_training.reward.reward import Completion, RewardConfig
from tests import processes, tiny
from tests.objectives.grpo_runs import (
    ENDS,
    EvenTokens,
    first_rollout,
    make_trainer,
    pairs,
    rewards_while_learning,
    save_files,
    train,
)
from tests.trainer.weights import moved, same


class JudgingConfig(RewardConfig):
    leaves_out: list[str] = []
    fails_at: Annotated[int, RESUME_SAFE] = 0
    rank: int = 0


def test_completions_are_what_the_model_gave(tmp_path: Path) -> None:
    """Three of each prompt, with the lengths and ends that the metrics say."""
    trainer = make_trainer(tmp_path, micro_batch_size=7)
    batch = first_rollout(trainer)
    known = trainer.tokenizer.get_vocab()
    ends = {known[word] for word in ENDS} | {trainer.tokenizer.eos_token_id}
    prompts = [list(map(int, trainer.train_loader.dataset[n]["input_ids"])) for n in trainer.train_loader.samples(0, 0)]
    for n, (prompt, completion) in enumerate(pairs(batch)):
        assert prompt == prompts[n // 3]
        assert len(completion) == int(batch["lengths"][n]) <= 5
        assert not ends & set(completion[:-1])
        assert (completion[-1] in ends) == bool(batch["metrics"]["ended"][n])
        assert len(completion) == 5 or completion[-1] in ends
    metrics = batch["metrics"]
    assert metrics["reward"].tolist() == pytest.approx(
        (metrics["reward/even_for_tests"] + 0.3 * metrics["reward/length"]).tolist(), abs=1e-6
    )
    assert len(set(batch["lengths"].tolist())) > 1
    trainer.close()


@pytest.mark.parametrize(
    "keys", [{"normalize": "token"}, {"normalize": "constant", "num_iterations": 3, "scale_rewards": False}]
)
def test_the_cut_of_the_global_batch_changes_nothing(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Seven prompts: the last window of an epoch is short, and one of its micro-batches too."""
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    cuts: list[tuple[int, int, bool, int]] = [(2, 2, True, 0), (1, 4, True, 3), (4, 1, False, 1)]
    for micro, accumulate, packs, together in cuts:
        cut = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulate, "generation_batch_size": together}
        same(expected, train(str(tmp_path), data={"pack_samples": packs}, **cut, **keys))


def test_two_processes_are_one(tmp_path: Path) -> None:
    """The second has no row of the last global batch; at stage 3 it must answer all the same."""
    source = {"name_or_path": str(tmp_path / "rows.jsonl"), "split": "train[:5]"}
    keys: dict[str, Any] = {"normalize": "token", "num_iterations": 2, "data": {"sources": [source]}}
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    blocks = [{"gradient_clipping": 0, "zero_optimization": {"stage": stage}} for stage in (3, 1)]
    for own, of_reference in ((0, 0), (0, 1), (1, 0)):
        more = {"deepspeed": blocks[own], "reference_model_deepspeed": blocks[of_reference]}
        for part in processes.share(train, 2, str(tmp_path), micro_batch_size=2, **more, **keys):
            same(expected, part)


def test_completions_differ_from_update_to_update_and_from_run_to_run_by_the_seed_alone(tmp_path: Path) -> None:
    def sampled(**keys: Any) -> list[Any]:
        trainer = make_trainer(
            tmp_path, micro_batch_size=7, optimizer={"type": "sgd", "lr": 0}, overfit_first_batch=True, **keys
        )
        seen: list[Any] = []
        trainer.listen("post-generate_rollouts", lambda self, rollouts: seen.append(pairs(rollouts[0])))
        trainer.train()
        trainer.close()
        return seen

    first, second, third = sampled()
    assert first != second != third != first
    assert sampled() == [first, second, third]
    assert sampled(seed=43)[0] != first


def test_an_evaluation_does_not_depend_on_the_cut_and_leaves_no_trace(tmp_path: Path) -> None:
    evaluations = []
    for micro in (7, 2, 1):
        data = {"eval_sources": [str(tmp_path / "rows.jsonl")]}
        trainer = moved(
            make_trainer(tmp_path, micro_batch_size=micro, data=data, normalize="token", evaluators="generate")
        )
        before = torch.get_rng_state()
        evaluations.append(trainer.evaluate())
        assert torch.equal(torch.get_rng_state(), before) and trainer.model.module.training
        trainer.close()
    assert (
        evaluations[0]["kl/eval"] > 0 and evaluations[0]["reward_std/eval"] > 0 and "exact_match/eval" in evaluations[0]
    )
    assert evaluations[0]["loss/eval"] != 0 and "loss_of_tokens/eval" not in evaluations[0]
    for cut in evaluations[1:]:
        assert cut == pytest.approx(evaluations[0], rel=1e-5, abs=1e-7)


LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


def test_the_reference_of_an_adapter_is_the_model_without_it(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    alone = moved(make_trainer(tmp_path, model={"peft_config": LORA}, micro_batch_size=7))
    assert "ref_model" not in alone.engines
    batch = first_rollout(alone)
    inputs = batch["inputs"]
    assert not torch.allclose(batch["ref_logprobs"], alone.log_probs(alone.model, inputs), atol=1e-3)
    with alone.model.module.disable_adapter():
        assert torch.allclose(batch["ref_logprobs"], alone.log_probs(alone.model, inputs), atol=1e-6)
    alone.close()
    free = make_trainer(tmp_path, beta=0, micro_batch_size=7)
    assert "ref_model" not in free.engines and first_rollout(free)["ref_logprobs"] is None
    free.close()


def test_the_policy_learns_what_is_rewarded(tmp_path: Path) -> None:
    rewards = rewards_while_learning(tmp_path, num_generations=8)
    assert rewards[-1] > rewards[0] + 0.2, rewards


def test_several_iterations_count_in_the_schedule_and_not_in_the_run(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"optimizer": {"type": "sgd", "lr": 1.0}, "scheduler": {"name": "linear", "warmup_ratio": 0}}
    trainer = make_trainer(tmp_path, num_iterations=3, micro_batch_size=7, **keys)
    rates: list[float] = []
    trainer.listen("post-loss", lambda self, loss: rates.append(self.model.optimizer.param_groups[0]["lr"]))
    trainer.train()
    assert trainer.progress.step == 3 and trainer.model.global_steps == 9
    assert rates == pytest.approx([1 - n / 9 for n in range(9)])
    trainer.close()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("clipped" in line for line in rows)


def test_prompts_that_leave_no_room_are_left_out(tmp_path: Path) -> None:
    save_files(tmp_path)
    expected = make_trainer(tmp_path)
    lengths = sorted(expected.train_loader.dataset.lengths().tolist())
    expected.close()
    trainer = make_trainer(tmp_path, data={"max_length": lengths[3] + 5})
    assert sorted(trainer.train_loader.dataset.lengths().tolist()) == lengths[:4]
    trainer.close()


@pytest.mark.fault(14)
def test_a_loss_that_is_no_number_in_a_later_iteration_names_its_samples(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, num_iterations=2, micro_batch_size=1, gradient_accumulation_steps=2, nan_guard="stop"
    )
    losses: list[torch.Tensor] = []

    def spoil(self: Any, loss: torch.Tensor) -> torch.Tensor | None:
        losses.append(loss)
        return loss * float("nan") if len(losses) == 4 else None  # the second micro-batch, gone through again

    # before the guard, which is the first to listen to a run
    trainer.callbacks.insert(0, ("post-loss", spoil))
    sample = trainer.train_loader.samples(0, 1)[0]
    with pytest.raises(NonFiniteError, match=rf"^step 1: the loss is not finite: rank 0, training samples {sample}\."):
        trainer.train()
    trainer.close()


def test_completions_end_as_the_chat_template_ends_them(tmp_path: Path) -> None:
    """Whatever the tokenizer's own end token is, and whatever prompts are answered together."""
    for template, end in ((tiny.CHAT_TEMPLATE, "<|im_end|>"), (tiny.CHAT_TEMPLATE.replace("im_end", "pad"), "<|pad|>")):
        save_files(tmp_path)
        tiny.save_chats(tmp_path / "chats.jsonl", 4)
        tokenizer = {"chat_template": template}
        sources = [str(tmp_path / "chats.jsonl"), str(tmp_path / "rows.jsonl")]
        data = {"sources": sources, "max_length": 400}
        trainer = make_trainer(tmp_path, stop=[], tokenizer=tokenizer, data=data)
        known = trainer.tokenizer.get_vocab()
        assert trainer.eos_token_ids == sorted({known["<|im_end|>"], known[end]})
        assert {trainer.train_loader.dataset[n]["completion_ids"][-1] for n in range(4)} == {known[end]}
        trainer.close()


def test_an_end_need_not_be_the_tokenizers_own(tmp_path: Path) -> None:
    """A token that is special and has no part: so it is in tokenizers whose template ends turns with another."""
    from transformers import AutoTokenizer

    save_files(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    section = {"name_or_path": str(tmp_path / "tokenizer"), "chat_template": tiny.CHAT_TEMPLATE}
    trainer = make_trainer(tmp_path, stop=[], tokenizer=section)
    assert trainer.tokenizer.get_vocab()["<|im_end|>"] in trainer.eos_token_ids
    trainer.close()


def test_no_token_holds_parts_of_prompt_and_completion(tmp_path: Path) -> None:
    """One token would hold the end of the prompt and the beginning of the completion."""
    save_files(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "please s", "completion": "even"}) + "\n")
    trainer = make_trainer(tmp_path, data={"sources": [str(tmp_path / "pairs.jsonl")]})
    sample, tokenizer = trainer.train_loader.dataset[0], trainer.tokenizer
    assert tokenizer.decode(sample["input_ids"]) == "please s"
    assert tokenizer.decode(sample["completion_ids"]) == "even<|im_end|>"
    apart = [one for text in ("s", "even") for one in tokenizer(text)["input_ids"]]
    assert tokenizer("seven")["input_ids"] != apart, "there is nothing to keep apart"
    trainer.close()


def test_a_model_that_draws_from_another_distribution_is_refused(tmp_path: Path) -> None:
    """Its positions count the padding before a prompt."""
    from transformers import BartConfig, BartForCausalLM

    save_files(tmp_path)
    shape = {"vocab_size": 320, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    torch.manual_seed(0)
    model = BartForCausalLM(BartConfig(**shape, max_position_embeddings=512, pad_token_id=0, init_std=0.5))
    model.save_pretrained(tmp_path / "bart")
    tokenizer = {"name_or_path": str(tmp_path / "model")}
    bart = {"name_or_path": str(tmp_path / "bart"), "attn_implementation": "eager"}
    with pytest.raises(ModelError, match=r"^model: BartForCausalLM samples a token of log-probability .* are padded"):
        make_trainer(tmp_path, model=bart, tokenizer=tokenizer, beta=0, data={"pack_samples": False})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"checkpoint": {"type": "deepspeed", "save_every_n_steps": 1, "keep_last": 1, "keep_best": 1}},
            "keep_best: the loss is smallest",
        ),
        ({"model": {"peft_config": LORA | {"bias": "all"}}}, "ref_model: specify one; the adapter's bias: all changes"),
        (
            {"model": {"peft_config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}}},
            "ref_model: specify one; the policy has no output without its PROMPT_TUNING",
        ),
        ({"scheduler": {"warmup_steps": 20}, "train_iters": 10, "num_iterations": 4}, ""),
    ],
)
def test_what_would_be_silently_wrong(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    evaluated = {"data": {"eval_sources": [str(tmp_path / "rows.jsonl")]}, "evaluate_last": True}
    if not message:
        make_trainer(tmp_path, **keys).close()
        return
    with pytest.raises(RecipeError, match=re.escape(message)):
        make_trainer(tmp_path, **evaluated, **keys)


class Judging(EvenTokens):
    """Judges no answer that begins with a letter of the first half; fails on one rank if configured so."""

    name = "judging_for_tests"
    config_type = JudgingConfig
    calls = 0

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:  # type: ignore[override]
        type(self).calls += 1
        config = self.config
        if config.fails_at and type(self).calls >= config.fails_at and process_group.rank() == config.rank:
            raise ConnectionError("nobody answers")
        judged = [one.generated[:1] not in config.leaves_out if one.generated else True for one in completions]
        return [worth if some else None for some, worth in zip(judged, super().__call__(completions), strict=True)]


def test_a_completion_that_is_not_judged_moves_nobody(tmp_path: Path) -> None:
    half = [chr(n) for n in range(32, 110)]
    trainer = make_trainer(
        tmp_path, rewards={"type": "judging_for_tests", "leaves_out": half}, micro_batch_size=7, beta=0
    )
    batch = first_rollout(trainer)
    rewards, all_advantages = batch["metrics"]["reward"].reshape(-1, 3), batch["advantages"].reshape(-1, 3)
    assert 0 < rewards.isnan().sum() < rewards.numel()
    for values, advantages in zip(rewards.double(), all_advantages, strict=True):
        judged = ~values.isnan()
        assert not advantages[~judged].any()
        if judged.any():  # as in a group of those alone
            better, spread = values[judged] - values[judged].mean(), values[judged].std(correction=0)
            alone = better / spread if spread > 1e-6 else torch.zeros_like(better)
            assert torch.allclose(advantages[judged].double(), alone, atol=1e-5)
    means = {"reward": rewards[~rewards.isnan()].mean(), "abstained/judging_for_tests": rewards.isnan().float().mean()}
    trainer.loss(batch)
    metrics = trainer.metrics.compute(lambda one: one)
    trainer.close()
    assert {name: metrics[name] for name in means} == pytest.approx({name: float(one) for name, one in means.items()})
    assert metrics["reward/judging_for_tests"] == pytest.approx(metrics["reward"]) and math.isfinite(
        metrics["reward_std"]
    )


def fail_and_go_on(folder: str) -> list[Any]:
    """A run whose reward fails on the last process at its third update, the same run again, and one without a fault."""
    results: list[Any] = []
    last, save = process_group.world_size() - 1, {"type": "deepspeed", "auto_resume": True}
    for fails_at, run in ((4, "run"), (0, "run"), (0, "other")):  # the first call is before the run
        Judging.calls = 0
        reward = {"type": "judging_for_tests", "retries": 0, "fails_at": fails_at, "rank": last}
        trainer = make_trainer(Path(folder), rewards=reward, output_dir=str(Path(folder) / run), checkpoint=save)
        try:
            trainer.train()
            results.append({name: p.detach().clone() for name, p in trainer.model.module.named_parameters()})
        except ScoringError as error:
            results.append((str(error), trainer.progress.step, trainer.exit_code))
        trainer.close(failed=True)
    return results


@pytest.mark.parametrize("world", [1, 2])
def test_a_reward_that_fails_ends_a_run_that_is_saved(world: int, tmp_path: Path) -> None:
    save_files(tmp_path)
    for failed, again, other in processes.share(fail_and_go_on, world, str(tmp_path)):
        assert re.match("rewards.0: judging_for_tests fails for the completion '", failed[0]), failed
        assert failed[1] == 2
        assert all(torch.equal(again[name], other[name]) for name in other)
    assert (tmp_path / "run/checkpoints/deepspeed/step_2").is_dir()
