"""A user's own code that cannot be used, or that fails when it is used."""

from tests.bad_inputs.case import Case, sft


def trainer(name: str, *body: str) -> dict[str, str]:
    """A train.py with a trainer of that name."""
    code = "".join(f"    {line}\n" for line in ("", *body) if body)
    return {
        "train.py": f"from arctic_training import SFTTrainer\n\n\nclass Mine(SFTTrainer):\n    name = '{name}'\n{code}"
    }


def part(kind: str, name: str, *body: str) -> dict[str, str]:
    """A train.py with a part of a run."""
    code = "".join(f"    {line}\n" for line in body)
    return {"train.py": f"from arctic_training import {kind}\n\n\nclass Mine({kind}):\n    name = '{name}'\n{code}"}


def loss(name: str, line: str) -> dict[str, str]:
    return trainer(name, "def loss(self, batch):", f"    {line}")


def of(name: str) -> str:
    return f"type: {name}\n{sft()}"


BARE = "from arctic_training import Trainer\n\n\nclass Mine(Trainer):\n"
LOAD = "def load(self, config, split):"

CASES: dict[str, Case] = {
    "no such file": Case("recipe.yaml:3:7: code: mine.py: no such file", recipe=sft(more="code: mine.py\n")),
    "a folder": Case(
        "recipe.yaml:3:7: code: mine: no such file",
        recipe=sft(more="code: mine\n"),
        files={"mine": lambda at: at.mkdir()},
    ),
    "no Python": Case("{here}/train.py:2:7: code: invalid syntax", files={"train.py": "x = 1\nclass = 2\n"}),
    "no indentation": Case(
        "{here}/train.py:2:1: code: expected an indented block after function definition on line 1",
        files={"train.py": "def f():\nreturn 1\n"},
    ),
    "a NUL": Case(
        "{here}/train.py: code: source code string cannot contain null bytes", files={"train.py": b"x = 1\0\n"}
    ),
    "not UTF-8": Case(
        "{here}/train.py:2:8: code: (unicode error) 'utf-8' codec can't decode byte 0xe9 in position 0: "
        "unexpected end of data",
        files={"train.py": b"x = 1\ny = '\xe9'\n"},
    ),
    "raises": Case(
        "{here}/train.py:5: code: ZeroDivisionError: integer division or modulo by zero",
        files={"train.py": "import os\n\n\ndef f():\n    return 1 // 0\n\n\nf()\n"},
    ),
    "raises in a library": Case(
        "{here}/train.py:3: code: JSONDecodeError: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
        files={"train.py": "import json\n\njson.loads('{')\n"},
    ),
    "imports what is not there": Case(
        "{here}/train.py:1: code: ModuleNotFoundError: No module named 'no_such_library'",
        files={"train.py": "import no_such_library\n"},
    ),
    "raises in a file beside it": Case(
        "{here}/beside_it.py:3: code: ValueError: no",
        files={"train.py": "import beside_it\n", "beside_it.py": "\n\nraise ValueError('no')\n"},
    ),
    "exits": Case("{here}/train.py:3: code: SystemExit: 0", files={"train.py": "import sys\n\nsys.exit(0)\n"}),
    "calls itself without end": Case(
        "{here}/train.py:2: code: RecursionError: maximum recursion depth exceeded",
        files={"train.py": "def f():\n    f()\n\n\nf()\n"},
    ),
    "no name": Case("{here}/train.py:4: code: RegistryError: Mine has the name ''; expected a word", files=trainer("")),
    "a name that is taken": Case(
        "{here}/train.py:4: code: RegistryError: the trainer name 'causal' of Mine in {here}/train.py "
        "is taken by arctic_training.objectives.causal.CausalTrainer; choose another name",
        files=trainer("causal"),
    ),
    "a name of its own twice": Case(
        "{here}/train.py:8: code: RegistryError: the trainer name 'own_twice' of Other in "
        "{here}/train.py is taken by Mine in {here}/train.py; choose another name",
        files={"train.py": trainer("own_twice")["train.py"] + "\n\nclass Other(SFTTrainer):\n    name = 'own_twice'\n"},
    ),
    "of no kind": Case(
        "{here}/train.py:4: code: RegistryError: Mine has a name but no kind; derive it from the base of a component",
        files={
            "train.py": "from arctic_training.registry import Registered\n\n\nclass Mine(Registered):\n    name = 'x'\n"
        },
    ),
    "a trainer without loss": Case(
        "recipe.yaml:1:7: type: own_lossless: the class Mine in {here}/train.py lacks loss, which it has to define",
        recipe=of("own_lossless"),
        files={"train.py": BARE + "    name = 'own_lossless'\n"},
    ),
    "a trainer without parts": Case(
        "recipe.yaml:1:7: type: own_bare: the class Mine in {here}/train.py states no "
        "model_factory_type and no data_factory_type and no tokenizer_factory_type and no "
        "optimizer_factory_type and no scheduler_factory_type and no checkpoint_engine_type",
        recipe=of("own_bare"),
        files={"train.py": BARE + "    name = 'own_bare'\n\n    def loss(self, batch):\n        return 0\n"},
    ),
    "a config that is none": Case(
        "recipe.yaml:1:7: type: own_odd: the class Mine in {here}/train.py states a config_type that is not a config",
        recipe=of("own_odd"),
        files=trainer("own_odd", "config_type = dict"),
    ),
    "a source without load": Case(
        "recipe.yaml:2:25: data.sources.0.type: own_loadless: the class Mine in {here}/train.py lacks "
        "load, which it has to define",
        recipe=sft("{type: own_loadless}"),
        files=part("DataSource", "own_loadless"),
    ),
    "a source that gives a list": Case(
        "own_list: load returned list; expected a datasets.Dataset",
        recipe=sft("{type: own_list}"),
        files=part("DataSource", "own_list", LOAD, "    return [1]"),
    ),
    "a callback of an unknown event": Case(
        "SFTTrainer has no event 'post-stepp'; pre- and post- go with: after_update, backward, "
        "checkpoint, epoch, evaluate, exception, init, load_checkpoint, log, loss, step, train, val_metrics",
        recipe=sft(more="callbacks: [own_event]\n"),
        files=part("Callback", "own_event", "def post_stepp(self, trainer):", "    pass"),
    ),
    "a source that raises": Case(
        [
            "Traceback (most recent call last; --debug shows all of it):",
            '  File "{here}/train.py", line 7, in load',
            "    return 1 // 0",
            "           ~~^^~~",
            "ZeroDivisionError: integer division or modulo by zero",
        ],
        recipe=sft("{type: own_raises}"),
        files=part("DataSource", "own_raises", LOAD, "    return 1 // 0"),
        code=1,
    ),
    "a loss that raises": Case(
        [
            "Traceback (most recent call last; --debug shows all of it):",
            '  File "{here}/train.py", line 8, in loss',
            "    return 1 // 0",
            "           ~~^^~~",
            "ZeroDivisionError: integer division or modulo by zero",
        ],
        recipe=of("own_loss"),
        files=loss("own_loss", "return 1 // 0"),
        code=1,
        starts=True,
    ),
    "a loss that raises in a library": Case(
        [
            "Traceback (most recent call last; --debug shows all of it):",
            '  File "{here}/train.py", line 8, in loss',
            "    return self.model(batch['nothing'])",
            "                      ~~~~~^^^^^^^^^^^",
            "KeyError: 'nothing'",
        ],
        recipe=of("own_lib"),
        files=loss("own_lib", "return self.model(batch['nothing'])"),
        code=1,
        starts=True,
    ),
    "a loss of nothing": Case(
        "the loss of Mine in {here}/train.py is None; expected a scalar tensor of the model's outputs",
        recipe=of("own_none"),
        files=loss("own_none", "pass"),
        code=1,
        starts=True,
    ),
    "a loss that is a number": Case(
        "the loss of Mine in {here}/train.py is 3.0; expected a scalar tensor of the model's outputs",
        recipe=of("own_number"),
        files=loss("own_number", "return 3.0"),
        code=1,
        starts=True,
    ),
    "a loss of several numbers": Case(
        "the loss of Mine in {here}/train.py has the shape [1, 24, 320]; expected a scalar "
        "tensor of the model's outputs",
        recipe=of("own_vector"),
        files=loss("own_vector", "return self.model(**{'input_ids': batch['input_ids']}).logits"),
        code=1,
        starts=True,
    ),
    "a loss without a gradient": Case(
        "the loss of Mine in {here}/train.py depends on no weight that is trained; expected a "
        "scalar tensor of the model's outputs",
        recipe=of("own_flat"),
        files=loss("own_flat", "return super().loss(batch).detach()"),
        code=1,
        starts=True,
    ),
}
