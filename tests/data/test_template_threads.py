"""Chat templates that several threads render at a time: the one of a run, and those that read streams ahead."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arctic_training.data.tokenization import chat_template
from arctic_training.data.tokenization.chat_template import ChatTemplate
from tests import tiny


@pytest.fixture(autouse=True)
def _often() -> Iterator[None]:
    """Threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def test_each_thread_has_its_own_spans(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for one in messages %}{{ one.role }}:{% generation %}{{ one.content }}{% endgeneration %}{% endfor %}"
    )
    template = ChatTemplate(tokenizer)
    groups = [[row["messages"] for row in tiny.chats(20, seed=seed)] for seed in range(4)]
    expected = [template.render_tagged(group) for group in groups]

    def rendered(number: int) -> bool:
        group = groups[number % len(groups)]
        if number % 2:
            template.render(group)
        return template.render_tagged(group) == expected[number % len(groups)]

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(rendered, range(60)))


def test_a_forked_process_renders_while_a_thread_of_its_parent_does() -> None:
    with chat_template._rendering:
        child = os.fork()
        if not child:
            os._exit(0 if chat_template._rendering.acquire(blocking=False) else 1)
        assert os.waitpid(child, 0)[1] == 0
