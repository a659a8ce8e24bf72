"""Writes plain values as YAML 1.2, which `yaml_reader` reads back as the same values."""

import yaml

from arctic_training.config.recipe.yaml_reader import scalar


class _Dumper(yaml.SafeDumper):
    """Quotes words by their meaning in YAML 1.2, where ``1e-5`` is a number and ``on`` is text."""

    yaml_implicit_resolvers = {}

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return "tag:yaml.org,2002:merge" if value == "<<" else _TAGS[type(scalar(value))]
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def ignore_aliases(self, data: object) -> bool:
        return True


_TAGS = {
    str: "tag:yaml.org,2002:str",
    bool: "tag:yaml.org,2002:bool",
    int: "tag:yaml.org,2002:int",
    float: "tag:yaml.org,2002:float",
    type(None): "tag:yaml.org,2002:null",
}


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(repr(value), repr(value))
    return dumper.represent_scalar(_TAGS[float], text)


_Dumper.add_representer(float, _float)


def write_yaml(value: object) -> str:
    """Returns ``value``, mappings, lists and scalars, as YAML; keys keep their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def write_word(value: object) -> str:
    """Returns ``value`` as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{write_word(key)}: {write_word(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_word, value)) + "]"
    if isinstance(value, str) and not value.isprintable():
        escaped = "".join(char if char.isprintable() and char not in '"\\' else _escaped(char) for char in value)
        return f'"{escaped}"'
    text: str = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.strip()[1:-1]


def _escaped(char: str) -> str:
    return {"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}.get(char) or f"\\U{ord(char):08x}"
