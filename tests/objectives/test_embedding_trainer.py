"""Embeddings on a tiny model: the loss and gradient by another way, of one big batch however it is cut."""

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from arctic_training import get_config
from arctic_training.errors.types import InputError
from tests import processes
from tests.objectives import tiny_runs
from tests.trainer.weights import same

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "add", "sum"]


def save_files(folder: Path) -> dict[str, Any]:
    rows = [
        {"anchor": " ".join(WORDS[: n + 1]), "positive": " ".join(WORDS[-n - 1 :]), "negative": WORDS[n] * 2}
        for n in range(7)
    ]
    rows[4]["anchor"], rows[5]["positive"] = rows[1]["anchor"], rows[2]["positive"]  # many to many
    return tiny_runs.save_files(folder, "pairs.jsonl", rows)


def make_trainer(folder: Path, **keys: Any) -> Any:
    sgd = {"type": "sgd", "lr": 0.01}
    return tiny_runs.make_trainer(folder, save_files(folder), **{"type": "embedding", "optimizer": sgd, **keys})


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    return tiny_runs.train(make_trainer(Path(folder), **keys))


def set_window(trainer: Any) -> Any:
    """Sets the trainer to its first window, and returns it."""
    trainer.train_loader.seek(0, 0)
    batches = [*islice(trainer.train_loader, trainer.config.gradient_accumulation_steps)]
    targets = sum(map(trainer.targets, batches))
    batches = [{**batch, "num_items_in_batch": targets / len(batches)} for batch in batches]
    trainer.window = type(trainer.window)(batches, targets)
    return trainer.window


def window_loss(trainer: Any) -> tuple[float, list[torch.Tensor]]:
    """The loss of the window and its gradients, which the engine adds up."""
    window, loss = trainer.window, 0.0
    for index, batch in enumerate(window.batches):
        window.index = index
        micro_loss, gradients = tiny_runs.loss_and_gradients(trainer, batch, keep=index < window.size - 1)
        loss += micro_loss / window.size
    return loss, gradients


def pooled(model: Any, side: Any, pooling: str) -> torch.Tensor:
    """Embeddings one by one, without padding."""
    embeddings = []
    for ids, mask in zip(side["input_ids"], side["attention_mask"], strict=True):
        hidden = model(input_ids=ids[mask.bool()][None]).last_hidden_state[0]
        embeddings.append({"mean": hidden.mean(0), "cls": hidden[0], "last_token": hidden[-1]}[pooling])
    return torch.stack(embeddings)


KEYS = [
    {},
    {"pooling": "cls", "normalize": False, "temperature": 2},
    {"pooling": "last_token", "symmetric": True},
    {"matryoshka_dims": [32, 8], "matryoshka_weights": [1, 0.5], "data": {"num_negatives": 0}},
]


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_the_loss_and_its_gradient_by_another_way(tmp_path: Path, keys: dict[str, Any]) -> None:
    trainer = make_trainer(tmp_path, micro_batch_size=7, **keys)
    (batch,) = set_window(trainer).batches
    loss, gradients = window_loss(trainer)
    config, model = trainer.config, trainer.model.module
    anchors, candidates = (pooled(model, batch[side], config.pooling) for side in ("anchor", "candidates"))
    decode = [texts_of(batch[side]) for side in ("anchor", "candidates")]
    together = {(decode[0][n], decode[1][n]) for n in range(7)}
    total = torch.zeros(())
    for n, dim in enumerate(config.matryoshka_dims or [32]):
        sides = [one[:, :dim] for one in (anchors, candidates)]
        scores = torch.stack(
            [(F.cosine_similarity(a, sides[1]) if config.normalize else sides[1] @ a) for a in sides[0]]
        )
        scores = scores / config.temperature
        for row in range(7):
            kept = [c for c, text in enumerate(decode[1]) if c == row or (decode[0][row], text) not in together]
            losses = -scores[row, kept].log_softmax(0)[kept.index(row)]
            if config.symmetric:
                kept = [a for a, text in enumerate(decode[0]) if a == row or (text, decode[1][row]) not in together]
                losses = (losses - scores[kept, row].log_softmax(0)[kept.index(row)]) / 2
            total = total + losses / 7 * (config.matryoshka_weights[n] if config.matryoshka_weights else 1)
    assert loss == pytest.approx(total.item(), rel=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(total, [*model.parameters()]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)
    trainer.close()


def test_the_loss_is_that_of_one_big_batch(tmp_path: Path) -> None:
    """Seven pairs: the last window is short, and one of its micro-batches is filled up or all filling."""
    keys: dict[str, Any] = {"symmetric": True, "matryoshka_dims": [32, 8]}
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    for micro, accumulate in ((2, 2), (1, 4)):
        same(expected, train(str(tmp_path), micro_batch_size=micro, gradient_accumulation_steps=accumulate, **keys))
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": 3}}
    for micro, accumulate in ((2, 1), (1, 2)):
        more = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulate, "deepspeed": block, **keys}
        for part in processes.share(train, 2, str(tmp_path), **more):
            same(expected, part)


def test_dropout_is_the_same_in_both_passes(tmp_path: Path) -> None:
    model = {"hf_config_kwargs": {"attention_dropout": 0.5}}
    trainer = make_trainer(tmp_path, micro_batch_size=2, gradient_accumulation_steps=3, model=model)
    window = set_window(trainer)
    torch.manual_seed(5)
    loss, gradients = window_loss(trainer)
    left = torch.get_rng_state()
    torch.manual_seed(5)
    parts = [trainer.embed(batch) for batch in window.batches]
    assert torch.equal(torch.get_rng_state(), left)
    joined = type(parts[0])(*map(torch.cat, zip(*parts, strict=True)))
    direct = trainer.losses(window.batches, joined).mean()
    assert loss == pytest.approx(direct.item(), rel=1e-6)
    expected = tiny_runs.gradients(trainer, 3 * direct)  # the engine divides by the number of micro-batches
    for one, other in zip(gradients, expected.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.manual_seed(6)
    assert window_loss(trainer)[0] != pytest.approx(loss, rel=1e-3)
    trainer.close()


@torch.no_grad()
def test_an_evaluation_by_another_way(tmp_path: Path) -> None:
    values = evaluate(str(tmp_path), 3)
    trainer = make_trainer(tmp_path, micro_batch_size=7)
    (batch,) = set_window(trainer).batches
    model = trainer.model.module.eval()
    anchors, candidates = (texts_of(batch[side]) for side in ("anchor", "candidates"))
    vectors = {text: vector for side in ("anchor", "candidates") for text, vector in embedded(model, batch[side])}
    measures: dict[str, list[float]] = {name: [] for name in ("loss", "accuracy", "mrr", "ndcg@10")}
    for row, anchor in enumerate(anchors):
        relevant = {text for other, text in zip(anchors, candidates[:7], strict=True) if other == anchor}
        scores = {text: F.cosine_similarity(vectors[anchor], vectors[text], dim=0).item() for text in candidates}
        ranked = sorted(scores, key=lambda text: -scores[text])
        ranks = sorted(ranked.index(text) + 1 for text in relevant)
        negatives = [score for text, score in scores.items() if text not in relevant or text == candidates[row]]
        measures["loss"].append(math.log(sum(math.exp(20 * (n - scores[candidates[row]])) for n in negatives)))
        measures["accuracy"].append(ranks[0] == 1)
        measures["mrr"].append(1 / ranks[0])
        gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10)
        measures["ndcg@10"].append(gain / sum(1 / math.log2(rank + 1) for rank in range(1, len(ranks) + 1)))
    for name, each in measures.items():
        assert values[f"{name}/eval"] == pytest.approx(sum(each) / 7, rel=1e-5), name
    trainer.close()


def texts_of(side: Any) -> list[tuple[int, ...]]:
    pairs = zip(side["input_ids"], side["attention_mask"], strict=True)
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in pairs]


def embedded(model: Any, side: Any) -> Any:
    return zip(texts_of(side), pooled(model, side, "mean"), strict=True)


def evaluate(folder: str, micro: int, names: Sequence[str] = ("pairs",), **keys: Any) -> dict[str, float]:
    data = {"eval_sources": [str(Path(folder) / f"{name}.jsonl") for name in names]}
    trainer = make_trainer(Path(folder), micro_batch_size=micro, data=data, **keys)
    trainer.evaluate()
    values: dict[str, float] = trainer.evaluate()
    trainer.close()
    return values


def test_an_evaluation_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    expected = evaluate(str(tmp_path), 7)
    assert expected.keys() == {f"{name}/eval" for name in ("loss", "accuracy", "mrr", "ndcg@10")}
    assert 1 > expected["ndcg@10/eval"] > expected["mrr/eval"] > expected["accuracy/eval"]
    evaluations = [evaluate(str(tmp_path), micro) for micro in (3, 1)]
    for values in [*evaluations, *processes.share(evaluate, 2, str(tmp_path), 2)]:
        assert values == pytest.approx(expected, rel=1e-5)


def test_each_evaluation_set_has_the_measures_of_its_own_texts(tmp_path: Path) -> None:
    save_files(tmp_path)
    rows = (tmp_path / "pairs.jsonl").read_text().splitlines(keepends=True)
    names = ("early", "late")
    for name, some in zip(names, (rows[:4], rows[2:]), strict=True):
        (tmp_path / f"{name}.jsonl").write_text("".join(some))
    both = evaluate(str(tmp_path), 2, names=names)
    for name in names:
        alone = evaluate(str(tmp_path), 2, names=[name])
        assert {key: both[f"{key.rpartition('/')[0]}/{name}"] for key in alone} == pytest.approx(alone, rel=1e-5)
    assert both["loss/early"] != pytest.approx(both["loss/late"], rel=1e-3)


def test_texts_find_their_own(tmp_path: Path) -> None:
    adam = {"type": "adamw", "lr": 3e-3, "weight_decay": 0}
    before = evaluate(str(tmp_path), 7)
    data = {"eval_sources": [str(tmp_path / "pairs.jsonl")]}
    trainer = make_trainer(tmp_path, micro_batch_size=7, train_iters=80, optimizer=adam, data=data)
    trainer.train()
    after = trainer.evaluate()
    trainer.close()
    assert after["accuracy/eval"] > 0.8 > before["accuracy/eval"]
    assert after["loss/eval"] < before["loss/eval"] / 2


@pytest.mark.parametrize("keys", [{}, {"pooling": "cls", "normalize": False}, {"pooling": "last_token"}], ids=str)
def test_sentence_transformers_loads_what_is_saved(tmp_path: Path, keys: dict[str, Any]) -> None:
    data = {"anchor_prompt": "one ", "max_length": 64}
    saved = {"type": "huggingface", "save_end_of_training": True, "output_dir": str(tmp_path / "saved")}
    trainer = make_trainer(tmp_path, micro_batch_size=7, checkpoint=saved, data=data, **keys)
    trainer.train()
    (batch,) = set_window(trainer).batches
    trainer.model.module.eval()
    with torch.no_grad():
        embeddings = trainer.embed_texts(batch["anchor"])
    texts = [trainer.tokenizer.decode(ids).removeprefix("one ") for ids in texts_of(batch["anchor"])]
    trainer.close()
    folder = tmp_path / "saved" / "step_3"
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", *(["Normalize"] if keys.get("normalize", True) else [])]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert (pooling["word_embedding_dimension"], sum(value is True for value in pooling.values())) == (32, 1)
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == 64
    expected = F.normalize(embeddings, dim=1) if keys.get("normalize", True) else embeddings
    torch.testing.assert_close(torch.tensor(model.encode(texts, prompt_name="query")), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"matryoshka_dims": [8, 32]}, "from the largest to the smallest"),
        ({"matryoshka_dims": [32, 8], "matryoshka_weights": [1]}, "1 weights for 2 matryoshka_dims"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_keys_that_contradict_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    recipe = {"type": "embedding", **save_files(tmp_path), **keys}
    with pytest.raises(InputError, match=message):
        get_config(recipe)
