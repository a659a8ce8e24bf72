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
    for key, default in (("roles_to_train", ["assistant"]), ("train_on_eos", "turn"), ("field_chosen", "chosen")):
        entry.ignore([key] if entry.values.get(key) == default else [])
    entry.ignore(["field_rejected"] if entry.values.get("field_rejected") == "rejected" else [])
    entry.ignore(["ds_type", "trust_remote_code"])
    more: dict[str, object] = {}
    column = entry.take("field", "text_column")
    if texts and column not in (None, "text"):
        more = {"type": "huggingface_causal", "column": str(column)}
    elif column not in (None, "text"):
        entry.note("field", f"{column}: rename the column to text")
    subset, split = entry.take("name"), entry.take("split")
    if files == [path] and named is not None:
        more |= {"kwargs": {"data_files": named}}
    return [_merged(source(file, split=split, subset=subset), more) for file in files or ["rows.jsonl"]]


def _merged(section: Source, more: Source) -> Source:
    """Returns a source with further keys; those of ``kwargs`` are joined, which only sources of the hub have."""
    kwargs = {**mapping(section.get("kwargs")), **mapping(more.get("kwargs"))}
    joined = section | more | ({"kwargs": kwargs} if kwargs else {})
    return {"type": "huggingface"} | joined if kwargs else joined
