"""Reward models: the loss by another way, that no cut changes it, and that what is trained scores completions."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_training.config.checks.problems import Problems
from arctic_training.errors.types import ModelError
from arctic_training.reward.model import ModelReward, ModelRewardConfig
from arctic_training.reward.reward import Completion
from arctic_training.reward.sections import read_rewards
from arctic_training.reward.weighted_sum import WeightedRewards
from arctic_training.tokenizer.lexer_factory import LexerConfig, LexerFactory
from tests import processes, tiny
from tests.objectives import dpo_runs, grpo_runs, tiny_runs
from tests.objectives.dpo_runs import first_batch
from tests.trainer.weights import moved, same


def make_trainer(folder: Path, **keys: Any) -> Any:
    folder.mkdir(exist_ok=True)
    model = {"new_weights": ["score"], **keys.pop("model", {})}
    return dpo_runs.make_trainer(folder, type="reward", model=model, **keys)


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    return tiny_runs.train(make_trainer(Path(folder), **keys))


@pytest.mark.parametrize("center", [0.0, 0.1])
def test_loss_and_gradient_by_another_way(tmp_path: Path, center: float) -> None:
    """Completion by completion, without padding, by the formula of TRL's RewardTrainer."""
    trainer = moved(make_trainer(tmp_path, micro_batch_size=7, center_rewards_coefficient=center))
    batch = first_batch(trainer)
    batch["margin"] = torch.linspace(-0.5, 0.5, 7)
    model = trainer.model.module
    loss = trainer.loss(batch)
    gradients = tiny_runs.gradients(trainer, loss)
    samples = [trainer.train_loader.dataset[n] for n in trainer.train_loader.samples(0, 0)]
    chosen, rejected = (
        torch.stack([model(torch.tensor(sample[f"{kind}input_ids"].tolist())[None]).logits[0, 0] for sample in samples])
        for kind in ("", "rejected_")
    )
    theirs = -torch.nn.functional.logsigmoid(chosen - rejected - batch["margin"]).mean()
    theirs = theirs + center * torch.mean((chosen + rejected) ** 2)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    expected = torch.autograd.grad(theirs, [*model.parameters()])
    for (name, ours), other in zip(gradients.items(), expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    metrics = trainer.metrics.compute(lambda numbers: numbers)
    assert metrics["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    assert metrics["margin"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-5)
    assert metrics["reward"] == pytest.approx(((chosen + rejected) / 2).mean().item(), rel=1e-5)
    trainer.close()


def test_the_cut_of_the_global_batch_changes_nothing(tmp_path: Path) -> None:
    """Seven pairs: the last window of an epoch is short, and one of its micro-batches too."""
    keys: dict[str, Any] = {"center_rewards_coefficient": 0.1}
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    for micro, accumulate in ((2, 2), (1, 4)):
        same(expected, train(str(tmp_path), micro_batch_size=micro, gradient_accumulation_steps=accumulate, **keys))
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": 2}}
    for part in processes.share(train, 2, str(tmp_path), micro_batch_size=2, deepspeed=block, **keys):
        same(expected, part)


def test_an_evaluation_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    evaluations = []
    for micro in (7, 2):
        data = {"eval_sources": [str(tmp_path / "pairs.jsonl")]}
        trainer = make_trainer(tmp_path, micro_batch_size=micro, data=data)
        evaluations.append(trainer.evaluate())
        trainer.close()
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)
    assert {"accuracy/eval", "margin/eval", "reward/eval", "loss/eval"} <= evaluations[0].keys()


def test_a_trained_model_is_a_reward(tmp_path: Path) -> None:
    """It ranks the pairs that it was trained on, when transformers alone loads it and when a recipe names it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    checkpoint = {"type": "huggingface", "save_end_of_training": True}
    adam = {"type": "adamw", "lr": 3e-3, "weight_decay": 0}
    trainer = make_trainer(tmp_path, micro_batch_size=7, train_iters=40, optimizer=adam, checkpoint=checkpoint)
    trainer.train()
    trainer.close()
    (folder,) = (tmp_path / "run" / "checkpoints" / "huggingface").glob("step_*")
    (config,) = read_rewards({"type": "model", "name_or_path": str(folder), "dtype": "fp32", "batch_size": 3})
    assert isinstance(config, ModelRewardConfig)
    reward = ModelReward(config)
    reward.check()
    reward.load()
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "add", "sum"]
    pairs = [
        (" ".join(words[: n + 1]), " " + " ".join(words[-a:]), " " + " ".join(words[:b]))
        for n, (a, b) in enumerate(dpo_runs.SIZES)
    ]
    completions = [
        Completion(prompt, text, "", 1, True) for prompt, chosen, rejected in pairs for text in (chosen, rejected)
    ]
    scores = reward(completions)
    assert all(chosen > rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    theirs = [
        model(**tokenizer(completion.problem + completion.generated + "<|im_end|>", return_tensors="pt")).logits.item()
        for completion in completions
    ]
    assert scores == pytest.approx(theirs, abs=1e-5)
    shorter = ModelReward(config.model_copy(update={"max_length": 3}))
    shorter.load()
    assert shorter(completions[:1]) != pytest.approx(scores[:1], abs=1e-5)


def test_equal_completions_are_scored_once(tmp_path: Path) -> None:
    """Whatever is beside them in a batch: in a group their rewards are compared, where rounding would count."""
    folder = save_reward_model(tiny.save_tokenizer(tmp_path))
    reward = ModelReward(ModelRewardConfig(type="model", name_or_path=str(folder), batch_size=2))
    reward.load()
    scored: list[int] = []
    scores_of, reward._scores = reward._scores, lambda rows: scored.append(len(rows)) or scores_of(rows)
    texts = ["one", "two", "one", "one two three four five", "two", "one"]
    scores = reward([Completion("add", text, "", 1, True) for text in texts])
    assert scores[0] == scores[2] == scores[5] and scores[1] == scores[4] and len({*scores}) == 3
    assert sum(scored) == 3
    others = [
        Completion("add", "one", "", 1, True),
        Completion("sum", "one", "", 1, True),
        Completion("add", "one", "", 1, False),
    ]
    assert len({*reward(others)}) == 3  # of another prompt, or cut off


def test_words_of_a_lexer_do_not_join(tmp_path: Path) -> None:
    """The last number of the problem and the first of the completion are two words, as in the data."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    section = {"type": "lexer", "vocab": {"range": {"numbers": ["", 0, 99]}}}
    config = LexerConfig.model_validate(section)
    LexerFactory(SimpleNamespace(config=SimpleNamespace(recipe_dir=tmp_path)), config)().save_pretrained(tmp_path)  # type: ignore[arg-type]
    folder = save_reward_model(tmp_path)
    reward = ModelReward(ModelRewardConfig(type="model", name_or_path=str(folder), dtype="fp32"))
    reward.load()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(["3", "1", "2", "4", tokenizer.eos_token])
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.item()
    assert reward([Completion("3 1", "2 4", "", 3, True)]) == [pytest.approx(expected, abs=1e-6)]


def save_reward_model(folder: Path) -> Path:
    """Saves a classifier with random weights beside the tokenizer in ``folder``."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    vocabulary = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), num_labels=1, pad_token_id=vocabulary.pad_token_id, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_model_without_a_head_of_one_label_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    def load(name: Path) -> None:
        ModelReward(ModelRewardConfig(type="model", name_or_path=str(name))).load()

    with pytest.raises(ModelError, match=r"score\.weight is missing: it is no trained sequence classifier"):
        load(tiny_model)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    tiny.save_tokenizer(tmp_path / "two")
    model.save_pretrained(tmp_path / "two")
    with pytest.raises(ModelError, match="it has 2 labels; a reward model has one"):
        load(tmp_path / "two")
    (section,) = read_rewards({"type": "model", "name_or_path": str(tmp_path / "two")})
    with pytest.raises(ModelError, match=r"rewards\.0: model: .*two: it has 2 labels"):
        WeightedRewards([section]).check()  # before anything is loaded
    (problem,) = ModelRewardConfig(type="model", name_or_path=str(tmp_path / "none")).missing_paths()
    assert problem.path == ("name_or_path",)
    with pytest.raises(Problems):
        read_rewards("model")


LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_with_its_head_is_saved(tmp_path: Path, merge: bool) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification

    checkpoint = {"type": "huggingface", "save_end_of_training": True, "merge_adapter": merge}
    trainer = make_trainer(tmp_path, micro_batch_size=7, model={"peft_config": LORA}, checkpoint=checkpoint)
    batch = first_batch(trainer)
    trainer.train()
    with torch.no_grad():
        trainer.model.module.eval()
        ours = trainer.rewards(batch)
    trainer.close()
    (folder,) = (tmp_path / "run" / "checkpoints" / "huggingface").glob("step_*")
    loader = AutoModelForSequenceClassification if merge else peft.AutoPeftModelForSequenceClassification
    theirs = loader.from_pretrained(folder).eval()
    scores = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert torch.allclose(ours, scores, atol=1e-5)
    reward = ModelRewardConfig(type="model", name_or_path=str(folder), dtype="fp32")
    assert bool(reward.missing_paths()) == (not merge)  # an adapter alone is no reward


def test_a_margin_comes_from_the_data(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, micro_batch_size=7)  # saves the files
    trainer.close()
    path = tmp_path / "pairs.jsonl"
    rows = [{**json.loads(line), "margin": n / 4} for n, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = make_trainer(tmp_path, micro_batch_size=7, data={"extra_columns": ["margin"]})
    batch = first_batch(trainer)
    assert batch["margin"].tolist() == [n / 4 for n in trainer.train_loader.samples(0, 0)]
    chosen, rejected = trainer.rewards(batch).chunk(2)
    theirs = -torch.nn.functional.logsigmoid(chosen - rejected - batch["margin"]).mean()
    assert trainer.loss(batch).item() == pytest.approx(theirs.item(), rel=1e-5)
    trainer.close()


def train_policy(folder: str, model: str, **keys: Any) -> dict[str, torch.Tensor]:
    rewards = [{"type": "model", "name_or_path": model, "dtype": "fp32", "batch_size": 4}]
    return grpo_runs.train(folder, rewards=rewards, **keys)


def test_grpo_learns_from_the_rewards_of_a_model(tmp_path: Path) -> None:
    """Also where two ranks hold it, and the policy is sharded."""
    checkpoint = {"type": "huggingface", "save_end_of_training": True}
    trainer = make_trainer(tmp_path / "reward", micro_batch_size=7, checkpoint=checkpoint)
    trainer.train()
    trainer.close()
    (model,) = (tmp_path / "reward" / "run" / "checkpoints" / "huggingface").glob("step_*")
    expected = train_policy(str(tmp_path / "policy"), str(model), micro_batch_size=4, train_iters=1)
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": 3}}
    keys: dict[str, Any] = {"micro_batch_size": 2, "train_iters": 1, "deepspeed": block}
    for part in processes.share(train_policy, 2, str(tmp_path / "policy"), str(model), **keys):
        same(expected, part)
