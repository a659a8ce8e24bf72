"""The entries of axolotl's ``datasets``, as data sources of a recipe."""

from collections.abc import Mapping

from arctic_training.config.migration.foreign import Foreign, as_list
from arctic_training.config.migration.sections import Source, mapping, source


def sources_of(entry: Foreign, texts: bool) -> list[Source]:
    """Returns the sources of an entry of ``datasets``, one for each of its files. Columns are found by their names,
    whatever its ``type``."""
    kind, path, named = entry.take("type"), entry.take("path"), entry.take("data_files")
    if isinstance(kind, Mapping):
        what = "write rows as chats, or as prompts and completions (docs/data.md)"
        entry.note("type", f"{', '.join(map(str, kind))}: {what}")
    elif str(kind).startswith("input_output"):
        entry.note("type", f"{kind}: segments with labels of their own are not read; write rows of tokens")
    files = as_list(named) if path in ("json", "csv", "parquet", "text") else [path]
    field = entry.take("field_messages")
    if field not in (None, "messages", "conversations", "conversation", "chat", "dialogue"):
        entry.note("field_messages", f"{field}: rename the column to messages")
    names = mapping(entry.take("message_property_mappings"))
    role, content = entry.take("message_field_role"), entry.take("message_field_content")
    words = (names.get("role", role) or "role", names.get("content", content) or "content")
    if words not in (("role", "content"), ("from", "value")):
        text = f"{' and '.join(map(str, words))}: rename the fields to role and content"
        entry.note("message_property_mappings", text)
    defaults = {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
    defaults |= {"field_chosen": "chosen", "field_rejected": "rejected"}
    entry.ignore(key for key, default in defaults.items() if entry.values.get(key) == default)
    entry.ignore(["ds_type", "trust_remote_code"])
    more: dict[str, object] = {}
    column = entry.take("field", "text_column")
    if texts and column not in (None, "text"):
        more = {"type": "huggingface_causal", "column": str(column)}
    elif column not in (None, "text"):
        entry.note("field", f"{column}: rename the column to text")
    subset, split = entry.take("name"), entry.take("split")
    named = named if files == [path] else None
    files = files or ["rows.jsonl"]
    return [source(file, split=split, subset=subset, data_files=named) | more for file in files]
