"""Every refusal of a run has a case that goes through `validate`, or a reason why it has none."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache

from arctic_training.errors import types
from arctic_training.errors.types import InputError, ResumeError
from tests.bad_inputs.test_bad_inputs import CASES
from tests.bad_inputs.test_bad_recipes import BAD
from tests.cli.test_validate import UNSEEN
from tests.processes import ROOT
from tests.tracked import tracked

REFUSALS = {
    name for name, one in vars(types).items() if isinstance(one, type) and issubclass(one, (InputError, ResumeError))
} | {"RowError", "NothingLeft"}
ROOMS = (
    "callback checkpoint engine evaluation generation model objectives optimizer reward scheduler tokenizer tracker "
    "trainer"
)
"""The rooms of a run, but for data: those of local files are prepared by `validate` with the code of the run."""


OTHER_CASES = [
    "cli/test_validate.py",
    "trainer/test_check_recipe.py",
    "trainer/test_check_data.py",
    "checkpoint/test_guard.py",
]
"""Tests of what `validate` refuses, beside `CASES`."""


WITHOUT_CASE: dict[str, dict[str, int]] = {
    "a forward pass, an optimizer or another part that is built with the weights shows it": {
        "model/attention.py": 2,
        "model/causal_lm.py": 2,
        "model/checks/model_loss.py": 3,
        "model/checks/packing_isolation.py": 1,
        "model/checks/tiling.py": 1,
        "model/target_outputs.py": 1,
        "model/transforms/activation_checkpointing.py": 2,
        "model/transforms/compile.py": 1,
        "objectives/critic.py": 1,
        "objectives/distill.py": 1,
        "objectives/precomputed.py": 1,
        "objectives/reference.py": 1,
        "objectives/sampling_check.py": 1,
        "reward/model.py": 1,
        "scheduler/factory.py": 3,
    },
    "the weights or the state of a checkpoint show it": {
        "checkpoint/adapter.py": 1,
        "checkpoint/checkpointer.py": 2,
        "checkpoint/deepspeed.py": 2,
        "checkpoint/model_methods.py": 1,
        "engine/hyperparameters.py": 1,
        "engine/resharding.py": 2,
        "engine/snapshot.py": 1,
    },
    "the device shows it": {
        "callback/memory_profiler.py": 1,
        "engine/config.py": 1,
        "engine/initialize.py": 1,
        "model/liger_factory.py": 1,
        "trainer/memory.py": 1,
    },
    "completions, the hub, a tracker or another run shows it": {
        "evaluation/lm_eval.py": 1,
        "reward/weighted_sum.py": 1,
        "tracker/tracker.py": 1,
        "trainer/lock.py": 3,
    },
    "samples of a data factory of the user's own show it": {
        "generation/prompts.py": 2,
    },
    "a class is refused where it is defined, when the recipe is read": {
        "callback/hook_names.py": 2,
        "callback/hooks.py": 1,
        "trainer/former_registry.py": 2,
        "trainer/role.py": 6,
    },
    "a program or another command meets it": {
        "checkpoint/saved_model.py": 4,
        "generation/chat.py": 5,
        "generation/config.py": 2,
        "model/passed.py": 2,
        "model/passed_factory.py": 2,
        "trainer/assembly.py": 1,
        "trainer/outputs.py": 4,
        "trainer/passed.py": 2,
    },
}
"""How many refusals of a file have no case, by the reason. The numbers change with the file."""

COMPUTED = {
    "model/checks/weight_shapes.py": [
        "model: weights of another shape",
        "architecture: a head that the files do not have",
    ],
    "model/pretrained.py": ["model: generation settings that contradict one another"],
}
"""The cases of refusals whose message is computed, by the file, one for each."""


def message(call: ast.Call) -> str:
    """The longest text that is in every message of the error that ``call`` makes; empty where all of it is computed."""
    texts = [one.value for one in ast.walk(call) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return max(texts, key=len, default="")


@cache
def refusals() -> dict[str, list[str]]:
    """The messages of the errors that each file of `ROOMS` makes."""
    messages: dict[str, list[str]] = {}
    for path in tracked(*(f"arctic_training/{room}/**/*.py" for room in ROOMS.split())):
        for call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            messages.setdefault(str(path.relative_to(ROOT / "arctic_training")), []).append(message(call))
    return messages


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REFUSALS:
            yield node


def shown() -> str:
    cases = [case for name, case in CASES.items() if name not in UNSEEN]
    texts = [case.says if isinstance(case.says, str) else "\n".join(case.says) for case in cases]
    texts += ["\n".join(lines) for _, lines in BAD.values()]
    texts += [(ROOT / "tests" / file).read_text(encoding="utf-8").replace("\\", "") for file in OTHER_CASES]
    return "\n".join(texts)


@cache
def uncovered() -> dict[str, list[str]]:
    """The messages of each file that stand in no case, but for those that `COMPUTED` has a case of."""
    text = shown()
    left = {file: [one for one in messages if not one or one not in text] for file, messages in refusals().items()}
    for file, cases in COMPUTED.items():
        for _ in cases:
            left[file].remove("")
    return {file: messages for file, messages in left.items() if messages}


def test_the_cases_of_computed_messages_go_through_validate() -> None:
    assert {name for names in COMPUTED.values() for name in names} <= CASES.keys() - UNSEEN


def test_every_refusal_of_a_run_has_a_case_or_a_reason() -> None:
    expected = sum((Counter(files) for files in WITHOUT_CASE.values()), Counter[str]())
    actual = {file: len(messages) for file, messages in uncovered().items()}
    differ = {file for file in expected | actual if expected[file] != actual.get(file, 0)}
    about = {file: (expected[file], uncovered().get(file)) for file in sorted(differ)}
    assert not about, f"add a case to tests/bad_inputs, or count it in WITHOUT_CASE with its reason: {about}"
