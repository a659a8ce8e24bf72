"""Tokenizers: where they come from, their template, and a pad token that ends nothing and has a row in the model."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_training.errors.types import ModelError
from arctic_training.model.vocabulary import fit_vocabulary
from arctic_training.tokenizer.huggingface_factory import HFTokenizerConfig, HFTokenizerFactory, set_pad_token
from tests import tiny


def make(folder: Path | str, *, recipe_dir: Path = Path(), **section: Any) -> Any:
    config = HFTokenizerConfig(**{"type": "huggingface", **section})
    recipe = SimpleNamespace(model=SimpleNamespace(name_or_path=str(folder)), recipe_dir=recipe_dir)
    return HFTokenizerFactory(SimpleNamespace(config=recipe), config)()  # type: ignore[arg-type]


def tokenizer(folder: Path, *, pad: str | None, more: list[str] = [], template: str = "") -> Any:  # noqa: B006
    """One that ends with ``<|im_end|>``, with ``more`` tokens in its vocabulary."""
    from transformers import PreTrainedTokenizerFast

    tiny.save_tokenizer(folder)
    built = PreTrainedTokenizerFast.from_pretrained(folder)
    inner = built._tokenizer
    inner.add_tokens(more)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token=pad, chat_template=template or None
    )


def test_it_is_the_models_own_unless_another_is_named(tiny_model: Path, tmp_path: Path) -> None:
    assert len(make(tiny_model)) == len(make("nowhere", name_or_path=str(tiny_model)))
    with pytest.raises(ModelError, match=r"^tokenizer\.name_or_path: ./nothing: no such file or folder"):
        make(tiny_model, name_or_path="./nothing")
    with pytest.raises(ModelError, match=r"^model\.name_or_path: .*: no tokenizer in it; give tokenizer\.name_or_path"):
        make(tmp_path)


def test_the_template_is_the_tokenizers_the_recipes_or_a_file_beside_it(tiny_model: Path, tmp_path: Path) -> None:
    assert make(tiny_model).chat_template == tiny.CHAT_TEMPLATE
    assert make(tiny_model, chat_template="{{ messages }}").chat_template == "{{ messages }}"
    (tmp_path / "chat.jinja").write_text("{{ 'from a file' }}")
    assert make(tiny_model, recipe_dir=tmp_path, chat_template="chat.jinja").chat_template == "{{ 'from a file' }}"
    with pytest.raises(ModelError, match=r"^tokenizer\.chat_template: .*no\.jinja: No such file"):
        make(tiny_model, recipe_dir=tmp_path, chat_template="no.jinja")


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
@pytest.mark.parametrize(
    ("more", "template", "expected"),
    [
        ([], "", "<|pad|>"),  # tiny's tokenizer holds one
        (["<|reserved_special_token_7|>"], "uses <|pad|>", "<|reserved_special_token_7|>"),
        (["[unused3]"], "uses <|pad|>", "[unused3]"),
        (["<|finetune_right_pad_id|>"], "uses <|pad|>", "<|endoftext|>"),
        (["<pad>", "<unused0>"], "uses <|pad|>", "<pad>"),
        ([], "uses <|pad|> here", "<|endoftext|>"),
    ],
)
def test_a_spare_token_pads_where_the_end_token_would(
    tmp_path: Path, pad: str | None, more: list[str], template: str, expected: str
) -> None:
    built = tokenizer(tmp_path, pad=pad, more=more, template=template)
    size = len(built)
    set_pad_token(built)
    assert (built.pad_token, len(built)) == (expected, size)
    assert built.pad_token_id != built.eos_token_id
    built.save_pretrained(tmp_path / "saved")
    assert make(tmp_path / "saved").pad_token == expected


def test_a_pad_token_of_its_own_is_kept(tmp_path: Path) -> None:
    built = tokenizer(tmp_path, pad="<|endoftext|>", more=["<pad>"])
    set_pad_token(built)
    assert built.pad_token == "<|endoftext|>"


def test_the_recipe_may_name_the_pad_token(tiny_model: Path) -> None:
    assert make(tiny_model, pad_token="<|endoftext|>").pad_token == "<|endoftext|>"
    with pytest.raises(ModelError, match="'<none>' is not in the vocabulary"):
        make(tiny_model, pad_token="<none>")


@pytest.fixture
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model)


def rows(model: Any) -> tuple[int, int]:
    return model.get_input_embeddings().num_embeddings, model.get_output_embeddings().weight.shape[0]


def test_a_new_pad_token_gets_a_row_and_the_others_stay(tmp_path: Path, model: Any) -> None:
    built = tokenizer(tmp_path, pad=None, template="<|endoftext|>")
    taken = built.get_vocab()
    built.chat_template = "".join(taken)  # no token is spare
    model.resize_token_embeddings(len(built), mean_resizing=False)
    before = model.get_input_embeddings().weight.detach().clone()
    set_pad_token(built)
    assert built.pad_token == "<|pad|>"
    if "<|pad|>" in taken:
        built.add_special_tokens({"pad_token": "<|fresh|>"})
    assert built.pad_token_id == len(before)
    fit_vocabulary(model, built, resize=False)
    assert rows(model) == (-(-len(built) // 64) * 64,) * 2
    assert model.config.vocab_size == rows(model)[0]
    assert torch.equal(model.get_input_embeddings().weight[: len(before)], before)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == built.pad_token_id
    model(input_ids=torch.tensor([[built.pad_token_id]]))


def test_a_tokenizer_of_another_model_is_refused_or_gets_its_rows(tmp_path: Path, model: Any) -> None:
    built = tokenizer(tmp_path, pad="<|pad|>", more=[f"more {n}" for n in range(100)])
    before = rows(model)
    with pytest.raises(ModelError, match=r"tokens, 'more \d+' among them, .*do not belong together"):
        fit_vocabulary(model, built, resize=False)
    assert rows(model) == before
    fit_vocabulary(model, built, resize=True)
    assert rows(model)[0] >= len(built)


def test_a_model_with_rows_to_spare_stays_as_it_is(tiny_model: Path, model: Any, tmp_path: Path) -> None:
    before = rows(model)
    fit_vocabulary(model, make(tiny_model), resize=False)
    assert rows(model) == before


def test_a_model_in_a_folder_gets_the_tokenizers_pad_token(tiny_model: Path, tmp_path: Path) -> None:
    from tests.model.test_huggingface_factory import factory

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    built = make(folder, pad_token="<|endoftext|>")
    model = factory(folder, tokenizer=built)()
    assert model.config.pad_token_id == built.pad_token_id
