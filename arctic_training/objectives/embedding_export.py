"""The files by which sentence-transformers loads an embedding model, beside those of transformers."""

import json
from typing import Literal

Pooling = Literal["mean", "cls", "last_token"]

_MODULE = "sentence_transformers.models."
_MODES = {"mean": "mean_tokens", "cls": "cls_token", "last_token": "lasttoken"}


def sentence_transformers_files(
    *, width: int, max_length: int | None, pooling: Pooling, normalize: bool, anchor_prompt: str, candidate_prompt: str
) -> dict[str, str]:
    """Returns the text of each file by its name, for all versions of sentence-transformers from 2.4 on.

    ``width`` is that of the embeddings, ``max_length`` the tokens of the longest text. Anchors are queries there, and
    candidates documents.
    """
    paths = {"Transformer": "", "Pooling": "1_Pooling"} | ({"Normalize": "2_Normalize"} if normalize else {})
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": _MODULE + name}
        for number, (name, path) in enumerate(paths.items())
    ]
    modes = {f"pooling_mode_{mode}": name == pooling for name, mode in _MODES.items()}
    prompts = {"query": anchor_prompt, "document": candidate_prompt}
    files: dict[str, object] = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if normalize else "dot",
        },
    }
    return {name: json.dumps(content, indent=2) for name, content in files.items()}
