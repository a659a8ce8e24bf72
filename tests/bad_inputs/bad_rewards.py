"""Rewards that cannot be used, and what else keeps a policy from learning by its own completions."""

from tests import tiny
from tests.bad_inputs.case import ANSWER, Case, lines, sft


def grpo(*, rewards: str = "exact_match", data: str = "", more: str = "") -> str:
    return f"type: grpo\nrewards: {rewards}\nmax_new_tokens: 4\n{sft(data=data)}{more}"


def reward(name: str, *body: str) -> dict[str, str]:
    """A train.py with a reward of that name."""
    head = f"from arctic_training import Reward\n\n\nclass Mine(Reward):\n    name = '{name}'\n"
    code = "".join(f"        {line}\n" for line in body)
    return {"train.py": head + (f"\n    def __call__(self, completions):\n{code}" if body else "")}


def mine(name: str, says: str, line: str) -> Case:
    """Found before the run, by asking the reward about the first sample's own completion."""
    lines = [one if n else f"recipe.yaml:2:24: rewards.1: {name} {one}" for n, one in enumerate(says.split("\n"))]
    return Case(lines, recipe=grpo(rewards=f"[exact_match, {name}]"), files=reward(name, line), cached=True)


CASES: dict[str, Case] = {
    "none": Case("recipe.yaml: rewards: Field required", recipe=f"type: grpo\n{sft()}"),
    "an empty list": Case(
        "recipe.yaml:2:1: rewards: []: List should have at least 1 item after validation, not 0",
        recipe=grpo(rewards="[]"),
    ),
    "not found": Case(
        "recipe.yaml:2:10: rewards.type: no reward is named 'exact_mach'; did you mean 'exact_match'? there are: ...",
        recipe=grpo(rewards="exact_mach"),
    ),
    "a key that its scorer has not": Case(
        "recipe.yaml:2:27: rewards.0.wich: unknown; did you mean 'which'?",
        recipe=grpo(rewards="[{type: numeric, wich: first}]"),
    ),
    "a language model": Case(
        "recipe.yaml:2:11: rewards.0: model: model: it has 2 labels; a reward model has one",
        recipe=grpo(rewards="[{type: model, name_or_path: model}]"),
    ),
    "a reward model without padding": Case(
        "recipe.yaml:2:11: rewards.0: model: judge: its config has no pad_token_id, so that padding would be scored",
        recipe=grpo(rewards="[{type: model, name_or_path: judge}]"),
        files={"judge": lambda at: tiny.save_model(at, pad_token_id=None, num_labels=1)},
    ),
    "a group of one": Case(
        "recipe.yaml:6:18: num_generations: 1 should be greater than or equal to 2",
        recipe=grpo(more="num_generations: 1\n"),
    ),
    "wrong length": mine("short", "returned 1 numbers for 4 completions; expected one for each", "return [1.0]"),
    "no list": mine("bare", "returned 1.0; expected a number for each completion", "return 1.0"),
    "words": mine("wordy", "returned ['good', 'good']; expected a number for each completion", "return ['good'] * 2"),
    "NaN": mine("nan", "returned nan for the completion 'three' of '...", "return [float('nan') for _ in completions]"),
    "raises": mine(
        "raises",
        "fails on the reference of the first sample:\n"
        "Traceback (most recent call last; --debug shows all of it):\n"
        '  File "{here}/train.py", line 8, in __call__\n'
        "    return 1 / len(completions[4:])\n"
        "...\n"
        "ZeroDivisionError: division by zero",
        "return 1 / len(completions[4:])",
    ),
    "raises on a completion": Case(
        [
            "rewards.0: later fails for the completion ...",
            "Traceback (most recent call last; --debug shows all of it):",
            '  File "{here}/train.py", line 8, in __call__',
            "    return [1 / (completions[0].generated == 'three')] * 4",
            "...",
            "ZeroDivisionError: division by zero",
        ],
        recipe=grpo(rewards="{type: later, retries: 0}"),
        files=reward("later", "return [1 / (completions[0].generated == 'three')] * 4"),
        code=1,
        starts=True,
    ),
    "NaN on a completion": Case(
        "rewards.0: later_nan returned nan for the completion ...",
        recipe=grpo(rewards="later_nan"),
        files=reward("later_nan", "return [1.0 if one.generated == 'three' else float('nan') for one in completions]"),
        code=1,
        starts=True,
    ),
    "lacks its method": Case(
        "recipe.yaml:2:10: rewards.type: lacking: the class Mine in {here}/train.py lacks __call__, which it has to "
        "define",
        recipe=grpo(rewards="lacking"),
        files=reward("lacking"),
    ),
    "no temperature": Case(
        "recipe.yaml:6:14: temperature: 0 should be greater than 0", recipe=grpo(more="temperature: 0\n")
    ),
    "an end that is no token": Case(
        "recipe.yaml:6:1: stop: '<|stop|>' is not a token of the vocabulary",
        recipe=grpo(more="stop: ['<|stop|>']\n"),
    ),
    "no room for completions": Case(
        "recipe.yaml:5:43: data.max_length: 8 of 8 prompts leave no room for max_new_tokens in max_length = 8, the "
        "shortest has ...",
        recipe=grpo(data=", max_length: 8"),
        cached=True,
    ),
    "no prompt": Case(
        "rows.jsonl:1: there is no prompt before the answer",
        recipe=grpo(),
        files={"rows.jsonl": lines({"prompt": "", "completion": "three"})},
    ),
    "no answer": Case(
        "rows.jsonl:2: there is no answer",
        recipe=grpo(),
        files={
            "rows.jsonl": lines(
                {"messages": [{"role": "user", "content": "a"}, ANSWER]},
                {"messages": [{"role": "user", "content": "a"}]},
            )
        },
    ),
    "a reference that is not asked": Case(
        "recipe.yaml:7:1: ref_model: beta is 0, so that nothing is compared with a reference; remove it",
        recipe=grpo(more="beta: 0\nref_model: {name_or_path: model}\n"),
    ),
    "a block for a reference that is not asked": Case(
        "recipe.yaml:7:1: reference_model_deepspeed: this run has no ref_model; remove it",
        recipe=grpo(more="beta: 0\nreference_model_deepspeed: {zero_optimization: {stage: 3}}\n"),
    ),
    "a bound that lets nothing through": Case(
        "recipe.yaml:6:11: clip_low: 1 should be less than 1", recipe=grpo(more="clip_low: 1\n")
    ),
}
