"""Policies that are encoder-decoders: numbers by transformers' own forward, gradients by hand, cut and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.errors.types import InputError
from arctic_training.objectives.rollout_batch import split_inputs
from arctic_training.testing import check_cut, check_resume
from tests import processes, tiny
from tests.objectives import tiny_runs
from tests.objectives.grpo_runs import ENDS, first_rollout
from tests.trainer.weights import moved

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


def recipe(folder: Path, kind: str = "t5", **keys: Any) -> dict[str, Any]:
    """A recipe of seven prompts, of which each has three completions of up to five tokens."""
    if not (model := folder / kind).exists():
        tiny.save_encoder_decoder(model, kind)
    rows = [{"source": " ".join(WORDS[: n + 1]), "target": WORDS[n]} for n in range(7)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"name_or_path": str(model), "dtype": "fp32", "task": "seq2seq_lm"}
    data = {"sources": [str(folder / "rows.jsonl")], "max_length": 32, "cache_dir": str(folder / "cache")}
    options = {"num_generations": 3, "max_new_tokens": 5, "stop": ENDS, "beta": 0.2, "temperature": 1.3}
    rewards = ["even_for_tests", {"type": "length", "free": 0, "limit": 8, "weight": 0.3}]
    section |= keys.pop("model", {})
    data |= keys.pop("data", {})
    return {"type": "grpo", "model": section, "data": data, "rewards": rewards, **options, **keys}


def make(folder: Path, kind: str = "t5", **keys: Any) -> Any:
    return tiny_runs.make_trainer(folder, {}, **recipe(folder, kind, **keys))


def log_probs_alone(model: Any, prompt: Any, completion: Any) -> torch.Tensor:
    """Returns the log-probabilities of a completion by transformers, without padding: ``[tokens]``."""
    start = torch.tensor([model.config.decoder_start_token_id])
    decoder = torch.cat([start, torch.as_tensor(completion[:-1])])[None]
    logits = model(input_ids=torch.as_tensor(prompt)[None], decoder_input_ids=decoder).logits[0] / 1.3
    own: torch.Tensor = logits.log_softmax(-1).gather(1, torch.as_tensor(completion)[:, None])[:, 0]
    return own


@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_log_probs_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    trainer = moved(make(tmp_path, kind, micro_batch_size=7, num_iterations=2))
    rollout = first_rollout(trainer)
    pairs = split_inputs(rollout["inputs"])
    assert len(pairs) == 21 and len({len(completion) for _, completion in pairs}) > 1
    tokenizer = trainer.tokenizer
    for n, (prompt, completion) in enumerate(pairs):
        assert tokenizer.decode(prompt) in {" ".join(WORDS[: k + 1]) for k in range(7)}
        assert bool(rollout["finished"][n]) == (int(completion[-1]) in trainer.eos_token_ids)
    for role, name in (("model", "old_logprobs"), ("ref_model", "ref_logprobs")):
        model = trainer.engines[role].module.eval()
        with torch.no_grad():
            expected = torch.cat([log_probs_alone(model, *pair) for pair in pairs])
        assert torch.allclose(rollout[name], expected, atol=1e-5)
    assert not torch.allclose(rollout["old_logprobs"], rollout["ref_logprobs"], atol=1e-2)
    trainer.close()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_gradient_of_reinforce_by_hand(kind: str, tmp_path: Path) -> None:
    """The mean over completions of reward times the gradient of the log-probability, one completion after the other."""
    keys: dict[str, Any] = {"type": "reinforce", "baseline": "none", "beta": 0, "entropy_coefficient": 0}
    trainer = moved(make(tmp_path, kind, micro_batch_size=7, **keys))
    rollout = first_rollout(trainer)
    model = trainer.model.module.train()
    weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
    rewards = rollout["metrics"]["reward"]
    sums = torch.stack([log_probs_alone(model, *pair).sum() for pair in split_inputs(rollout["inputs"])])
    expected = torch.autograd.grad(-(rewards * sums).mean(), list(weights.values()))
    computed = tiny_runs.gradients(trainer, trainer.loss(rollout))
    for name, other in zip(weights, expected, strict=True):
        gradient = computed[name]
        assert gradient is not None
        assert torch.allclose(gradient, other, atol=1e-5 * float(other.abs().max() + 1e-3)), name
    trainer.close()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_critic_reads_the_prompt_with_its_encoder(kind: str, tmp_path: Path) -> None:
    """Its value of a token is its head's of what the decoder has read before it, whatever comes after."""
    trainer = moved(make(tmp_path, kind, micro_batch_size=7, type="ppo", critic={"new_weights": ["score"]}))
    rollout, critic, policy = first_rollout(trainer), trainer.engines["critic"].module.eval(), trainer.model.module
    start = torch.tensor([policy.config.decoder_start_token_id])
    values = []
    with torch.no_grad():
        for prompt, completion in split_inputs(rollout["inputs"]):
            decoder = torch.cat([start, torch.as_tensor(completion[:-1])])[None]
            backbone = getattr(critic, critic.base_model_prefix)
            hidden = backbone(input_ids=torch.as_tensor(prompt)[None], decoder_input_ids=decoder).last_hidden_state
            values.append(critic.score(hidden)[0, :, 0])
    assert torch.allclose(rollout["values"], torch.cat(values), atol=1e-5) and rollout["values"].std() > 1e-3
    # it starts from the weights of the policy
    own = dict(critic.named_parameters())
    trainer.close()
    trainer = make(tmp_path, kind, output_dir=str(tmp_path / "other"), beta=0)
    weights = {name: one for name, one in trainer.model.module.named_parameters() if not name.startswith("lm_head")}
    assert len(weights) > 10
    for name, weight in weights.items():
        assert torch.equal(own[f"model.{name.removeprefix('model.')}"], weight), name
    trainer.close()


PPO: dict[str, Any] = {"type": "ppo", "critic": {"new_weights": ["score"]}, "num_iterations": 2}


def cut_and_resume(folder: str) -> tuple[int, int]:
    keys: dict[str, Any] = {"micro_batch_size": 2, "gradient_accumulation_steps": 1, "optimizer": {"lr": 1e-3}, **PPO}
    settings = recipe(Path(folder), model={"hf_config_kwargs": {"dropout_rate": 0.1}}, **keys)
    # Adam's first steps are larger than rounding, so that the loss of the second iteration is compared loosely
    cuts = check_cut(settings, ["num_iterations=1"], cuts=[(1, 2)], tolerance=1e-5)
    return cuts, check_resume(settings, ["disable_dropout=false", "epochs=4"], steps=4)


@pytest.mark.parametrize("world", [1, 2])
def test_a_window_may_be_cut_and_interrupted_anywhere(world: int, tmp_path: Path) -> None:
    recipe(tmp_path)
    assert processes.share(cut_and_resume, world, str(tmp_path)) == [(1, 3)] * world


def test_completions_are_written_with_their_prompts(tmp_path: Path) -> None:
    trainer = make(tmp_path, callbacks=[{"type": "sample_rollouts", "every": 1}], train_iters=1, micro_batch_size=2)
    trainer.train()
    trainer.close()
    lines = (trainer.run_dir / "samples" / "sample_rollouts" / "step_1.jsonl").read_text().splitlines()
    prompts = {json.loads(line)["prompt"] for line in lines}
    assert len(lines) == 6 and len(prompts) == 2 and prompts < {" ".join(WORDS[: k + 1]) for k in range(7)}


def test_a_completion_takes_no_room_of_its_prompt(tmp_path: Path) -> None:
    trainer = make(tmp_path, data={"max_length": 5}, max_new_tokens=20)
    lengths = [len(trainer.tokenizer(" ".join(WORDS[: n + 1]))["input_ids"]) for n in range(7)]
    kept = sorted(trainer.train_loader.dataset.lengths().tolist())
    assert kept == [length for length in lengths if length <= 5] and 0 < len(kept) < 7
    trainer.close()


def test_the_decoder_alone_must_be_meant(tmp_path: Path) -> None:
    settings = recipe(tmp_path, "bart")
    del settings["model"]["task"]
    with pytest.raises(InputError, match=r"bart: BartConfig is of an encoder-decoder, and its decoder alone would"):
        tiny_runs.make_trainer(tmp_path, {}, **settings)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("bart", {"max_new_tokens": 65}, "max_new_tokens: 65 tokens, and the model has learned 64 positions; lower it"),
        ("t5", {"model": {"task": "causal_lm"}}, "no causal language model of transformers has such a config"),
        ("bart", {"ref_model": {"task": "causal_lm"}}, "ref_model.task: causal_lm, and the trainer takes seq2seq_lm"),
        ("t5", {**PPO, "critic": {"task": "token_classification"}}, "the trainer takes seq2seq_token_classification"),
    ],
)
def test_what_cannot_be_right_is_refused(kind: str, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        make(tmp_path, kind, **keys)
    assert message in str(error.value)
