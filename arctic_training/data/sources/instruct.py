"""Chats out of Hugging Face data sets, whatever their columns are called."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import model_validator

from arctic_training.data.formats.messages import ROLES
from arctic_training.data.formats.remarks import unread_columns
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.sources.huggingface import HFDataSource, HFDataSourceConfig
from arctic_training.errors.types import DataError


class HFInstructConfig(HFDataSourceConfig):
    role_mapping: dict[str, str] = {}
    """Where each role's words are: ``{user: question, assistant: answer}`` for columns; in a list of turns
    ``{user: conversations.from.human}``: column, field, and what the field says for that role. Data sets in a known
    shape need none."""
    content_key: str = ""
    """The field of a turn that holds its words; ``content``, or ``value`` beside a field ``from``, when left out."""

    @model_validator(mode="after")
    def _paths(self) -> "HFInstructConfig":
        for role, path in self.role_mapping.items():
            if role not in ROLES.values():
                raise ValueError(f"role_mapping: {role!r} is no role; there are {', '.join(sorted({*ROLES.values()}))}")
            if path.count(".") not in (0, 2):
                raise ValueError(f"role_mapping: {path!r} is neither a column nor column.field.value")
        if len({"." in path for path in self.role_mapping.values()}) > 1:
            raise ValueError("role_mapping: either all are columns, or all are column.field.value")
        return self


class HFInstructSource(HFDataSource):
    """Conversations, with the columns of roles and content told by the recipe."""

    name = "huggingface_instruct"
    config_type = HFInstructConfig

    def load(self, config: Any, split: str) -> Any:
        rows = super().load(config, split)
        mapping = config.role_mapping
        if not mapping:
            return rows
        for path in mapping.values():
            self.take(rows, path.partition(".")[0], "role_mapping")
        chat = _turns(mapping, config.content_key) if "." in "".join(mapping.values()) else _columns(mapping)
        unread_columns(rows.column_names, [path.partition(".")[0] for path in mapping.values()] + ["tools"])
        read = [column for column in rows.column_names if column != "tools"]  # which the chats are rendered with
        return rows.map(_Chats(chat), with_indices=True, remove_columns=read)


class _Chats:
    def __init__(self, chat: Callable[[Mapping[str, Any]], list[dict[str, Any]]]) -> None:
        self.chat = chat

    def __call__(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        try:
            return {"messages": self.chat(row)}
        except DataError as error:
            raise RowError(number, str(error)) from None


def _columns(mapping: Mapping[str, str]) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
    """One turn a column, in the order of the mapping; an empty column is no turn."""
    return lambda row: [{"role": role, "content": row[column]} for role, column in mapping.items() if row[column]]


def _turns(mapping: Mapping[str, str], content_key: str) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
    """The turns of a column; each says in a field who speaks."""
    roles = {tuple(path.split(".")[1:]): role for role, path in mapping.items()}
    columns = {path.split(".")[0] for path in mapping.values()}
    fields = {path.split(".")[1] for path in mapping.values()}
    if len(columns) > 1 or len(fields) > 1:
        raise DataError(f"role_mapping: one column and one field hold all turns, not {', '.join(mapping.values())}")
    column, field = columns.pop(), fields.pop()
    words = content_key or ("value" if field == "from" else "content")

    def chat(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        made = []
        for n, turn in enumerate(row[column] or (), 1):
            if words not in turn:
                raise DataError(f"turn {n} has no {words!r}, which content_key names; it has {', '.join(turn)}")
            role = roles.get((field, turn.get(field)))
            if role is None:
                raise DataError(f"turn {n} says {field}: {turn.get(field)!r}, which role_mapping does not name")
            more = {key: value for key, value in turn.items() if key not in (field, words)}  # calls of tools, a weight
            made.append({**more, "role": role, "content": turn[words]})
        return made

    return chat
