"""The source of chats in Hugging Face data sets, with columns named by the recipe."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from arctic_training.data.formats.messages import ROLES
from arctic_training.data.formats.remarks import unread_columns
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.sources.huggingface import HFDataSource, HFDataSourceConfig
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


class HFInstructConfig(HFDataSourceConfig):
    """A source of chats."""

    role_mapping: dict[str, str] = {}
    """Where each role's messages are: ``{user: question, assistant: answer}`` for columns; in a list of turns
    ``{user: conversations.from.human}``: column, field, and the field's value for that role. Data sets in a known
    format need none."""
    content_key: str = ""
    """The field of a turn with its content; by default ``content``, or ``value`` beside a field ``from``."""

    @model_validator(mode="after")
    def _check_paths(self) -> "HFInstructConfig":
        for role, path in self.role_mapping.items():
            if role not in ROLES.values():
                raise ValueError(f"role_mapping: {role!r} is no role; there are {', '.join(sorted({*ROLES.values()}))}")
            if path.count(".") not in (0, 2):
                raise ValueError(f"role_mapping: {path!r} is neither a column nor column.field.value")
        if len({"." in path for path in self.role_mapping.values()}) > 1:
            raise ValueError("role_mapping: either all are columns, or all are column.field.value")
        return self


class HFInstructSource(HFDataSource):
    """Chats whose columns or fields the recipe names in ``role_mapping``."""

    name = "huggingface_instruct"
    config_type = HFInstructConfig

    def load(self, config: Any, split: str) -> "Dataset | IterableDataset":
        rows = super().load(config, split)
        mapping = config.role_mapping
        if not mapping:
            return rows
        for path in mapping.values():
            self.require_column(rows, path.partition(".")[0], "role_mapping")
        chat = _turns(mapping, config.content_key) if "." in "".join(mapping.values()) else _columns(mapping)
        unread_columns(rows.column_names, [path.partition(".")[0] for path in mapping.values()] + ["tools"])
        read = [column for column in rows.column_names if column != "tools"]  # for the chat template
        return rows.map(partial(_to_messages, chat), with_indices=True, remove_columns=read)


def _to_messages(
    chat: Callable[[Mapping[str, Any]], list[dict[str, Any]]], row: Mapping[str, Any], number: int
) -> dict[str, Any]:
    """Returns the messages of a row. Raises `RowError`."""
    try:
        return {"messages": chat(row)}
    except DataError as error:
        raise RowError(number, str(error)) from None


def _columns(mapping: Mapping[str, str]) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
    """Returns a function that reads a turn from each column, in the order of the mapping; an empty column is none."""
    return lambda row: [{"role": role, "content": row[column]} for role, column in mapping.items() if row[column]]


def _turns(mapping: Mapping[str, str], content_key: str) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
    """Returns a function that reads the turns of one column, whose roles are in a field. Raises `DataError`."""
    roles = {tuple(path.split(".")[1:]): role for role, path in mapping.items()}
    columns = {path.split(".")[0] for path in mapping.values()}
    fields = {path.split(".")[1] for path in mapping.values()}
    if len(columns) > 1 or len(fields) > 1:
        raise DataError(f"role_mapping: one column and one field hold all turns, not {', '.join(mapping.values())}")
    column, field = columns.pop(), fields.pop()
    content = content_key or ("value" if field == "from" else "content")

    def chat(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        messages = []
        for n, turn in enumerate(row[column] or (), 1):
            if content not in turn:
                raise DataError(f"turn {n} has no {content!r}, which content_key names; it has {', '.join(turn)}")
            role = roles.get((field, turn.get(field)))
            if role is None:
                raise DataError(f"turn {n} says {field}: {turn.get(field)!r}, which role_mapping does not name")
            more = {key: value for key, value in turn.items() if key not in (field, content)}  # tool calls, a weight
            messages.append({**more, "role": role, "content": turn[content]})
        return messages

    return chat
