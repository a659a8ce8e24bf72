"""A bare `datasets.map`: reads the chats, renders and tokenizes them, and makes no labels and no packs.

Prints its CPU seconds, without those of importing libraries.

python bare_map.py SPEC_JSON
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoTokenizer


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(spec["folder"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def tokenized(rows: dict[str, Any]) -> Any:
        texts = tokenizer.apply_chat_template(rows["messages"], tokenize=False)
        return tokenizer(texts, add_special_tokens=False)

    before = time.process_time()
    chats = load_dataset(
        "json", data_files=str(folder / "data" / "train.jsonl"), split="train", cache_dir=spec["cache_dir"]
    )
    chats.map(tokenized, batched=True, remove_columns=chats.column_names)
    print(time.process_time() - before)


if __name__ == "__main__":
    main()
