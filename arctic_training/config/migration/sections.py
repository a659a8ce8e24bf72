"""Converts what configurations of several trainers have beside training arguments: sources, adapters, rewards."""

from collections.abc import Mapping, Sequence
from typing import get_args

from arctic_training.config.migration.foreign import Foreign, as_list, integer
from arctic_training.loss.preference import PreferenceLoss

Source = dict[str, object]


def source(
    name: object, *, split: object = None, subset: object = None, data_files: object = None, **more: object
) -> Source:
    """Returns the section of a data source: a file, a folder or a name on the hub; ``subset`` is its configuration."""
    section: Source = {"name_or_path": str(name)}
    kwargs = {} if subset in (None, "default") else {"name": subset}
    kwargs |= {} if data_files is None else {"data_files": data_files}
    if kwargs:
        section |= {"type": "huggingface", "kwargs": kwargs}
    if split not in (None, "train"):
        section["split"] = str(split)
    return section | {key: value for key, value in more.items() if value is not None}


def put_sources(foreign: Foreign, sources: Sequence[Source], key: str = "sources") -> None:
    """Puts data sources into the recipe, those that are a name alone as this name."""
    plain = [one["name_or_path"] if one.keys() == {"name_or_path"} else one for one in sources]
    foreign.put(f"data.{key}", plain or None)


def put_held_out(foreign: Foreign, key: str) -> None:
    """Carries over the share of the rows to evaluate on, unless there are data for it."""
    share = foreign.number(key)
    data = foreign.recipe.get("data")
    if not share or (isinstance(data, dict) and "eval_sources" in data):
        return
    if share < 1:
        foreign.put("data.train_eval_split", [round(1 - share, 6), share])
    else:
        foreign.note(key, f"{share:g} rows: give data.train_eval_split, a share, or data.eval_sources")


def put_lora(
    foreign: Foreign, *, rank: object, alpha: object, dropout: object, targets: object, **more: object
) -> None:
    """Puts a LoRA adapter into the recipe; ``targets`` is a list of modules, or a word for all linear ones."""
    modules = [str(one) for one in as_list(targets)]
    everything = not modules or modules in (["all"], ["all-linear"])
    adapter: dict[str, object] = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    adapter |= {"lora_dropout": dropout} if dropout else {}
    adapter["target_modules"] = "all-linear" if everything else modules
    foreign.put("model.peft_config", adapter | {key: one for key, one in more.items() if one})


def note_quantization(foreign: Foreign, *keys: str) -> None:
    """Notes that the base of an adapter is not quantized."""
    for key in keys:
        if foreign.take(key) not in (None, False):
            foreign.note(key, "the base model is not quantized: it needs its full memory in model.dtype")


def put_offloading(foreign: Foreign, key: str) -> None:
    """Keeps activations in the memory of the CPU, as ``key`` asks for: those that a layer is computed again from."""
    if mapping(foreign.recipe.get("model")).get("activation_checkpointing") is False:
        foreign.put("model.activation_checkpointing", True)
        foreign.note(key, "layers are computed again too: only their inputs are kept in the memory of the CPU")
    foreign.put("activation_checkpoint_cpu_offload", True)


def put_tensor_parallel(foreign: Foreign, key: str) -> None:
    """Puts the number of processes that divide the weights, after the ZeRO stage, of which 3 divides them too."""
    number = integer(foreign.number(key)) or 1
    if number <= 1:
        return
    if "zero_optimization" in mapping(foreign.recipe.get("deepspeed")):
        text = f"{number}: the recipe has deepspeed.zero_optimization; mesh.model goes with its stages 1 and 2"
        foreign.note(key, text)
    else:
        foreign.put("mesh.model", number)


def preference_loss(foreign: Foreign, key: str, word: object) -> str:
    """Returns our name of the loss of pairs ``word``, a value of ``key``."""
    word = {"dpo": "sigmoid"}.get(str(word), str(word))
    if word in get_args(PreferenceLoss):
        return word
    foreign.note(key, f"{word}: there is no such loss of pairs; sigmoid stands for it")
    return "sigmoid"


def put_rewards(foreign: Foreign, functions: object, weights: object) -> None:
    """Puts the rewards of a policy. Functions in Python have to be written as rewards, for which a scorer stands."""
    words = [str(one) for one in as_list(functions)] or ["accuracy"]
    factors = as_list(weights)
    sections: list[object] = []
    for number, word in enumerate(words):
        weight = factors[number] if number < len(factors) else 1.0
        reason = "exact_match stands for this reward: write it as a class in train.py (docs/extending.md)"
        foreign.notes.append(f"{word}: {reason}")
        sections.append("exact_match" if weight in (1, 1.0) else {"type": "exact_match", "weight": weight})
    foreign.put("rewards", sections)


def as_integer(value: object) -> int | None:
    """Returns a value as an int where it is one."""
    return integer(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None


def mapping(value: object) -> Mapping[str, object]:
    """Returns a value that is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}
