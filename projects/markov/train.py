"""A source of order 2 over eight symbols: its text, and how far a model is from the best that there can be."""

from typing import Any

import numpy as np
import torch

from arctic_training import Callback, ComponentConfig, DataSource, DataSourceConfig, Evaluator, HumanInt, is_main

SYMBOLS = "abcdefgh"
_CONCENTRATION = 0.4
"""Of the Dirichlet distribution that the rows of the table are drawn from: the smaller, the less is left to chance."""


def table(seed: int = 0) -> np.ndarray[Any, Any]:
    """Returns the probability of each symbol after each two, float64 ``[8, 8, 8]``."""
    draw = np.random.default_rng(seed)
    return draw.dirichlet(np.full(len(SYMBOLS), _CONCENTRATION), size=(len(SYMBOLS),) * 2)


def sample(length: int, seed: int) -> np.ndarray[Any, Any]:
    """Returns a text as numbers of symbols, int64 ``[length]``, which begins in the source's long-run behaviour."""
    draw, cumulated, burn_in = np.random.default_rng([1, seed]), table().cumsum(-1), 1000
    marks, text = draw.random(burn_in + length), [0, 0]
    for mark in marks:
        text.append(min(int(np.searchsorted(cumulated[text[-2], text[-1]], mark, "right")), len(SYMBOLS) - 1))
    return np.array(text[-length:])


def losses(text: np.ndarray[Any, Any], order: int, counted: np.ndarray[Any, Any] | None = None) -> float:
    """Returns the mean loss in nats of the symbols of ``text`` from the third on: under the source itself for order 2,
    and otherwise under the frequencies in ``counted`` after ``order`` symbols."""
    if order == 2:
        return float(-np.log(table()[text[:-2], text[1:-1], text[2:]]).mean())
    assert counted is not None
    counts = np.full((len(SYMBOLS),) * (order + 1), 1e-9)
    np.add.at(counts, tuple(counted[n : len(counted) - order + n] for n in range(order + 1)), 1)
    shares = counts / counts.sum(-1, keepdims=True)
    return float(-np.log(shares[tuple(text[2 - order + n : len(text) - order + n] for n in range(order + 1))]).mean())


class MarkovConfig(DataSourceConfig):
    """Keys of the source."""

    count: HumanInt = 400_000
    """Symbols."""


class MarkovSource(DataSource):
    """One long text."""

    name = "markov"
    config_type = MarkovConfig

    def load(self, config: MarkovConfig, split: str) -> Any:
        from datasets import Dataset

        text = sample(config.count, seed=0 if split == "train" else 1)
        return Dataset.from_dict({"text": ["".join(SYMBOLS[n] for n in text)]})


class ExcessConfig(ComponentConfig):
    """Keys of the evaluator."""

    rows: HumanInt = 256
    """Held-out texts."""
    length: HumanInt = 64
    """Symbols of each."""


class ExcessEvaluator(Evaluator):
    """Measures the loss of the symbols that have two before them, and how far it is above that of the source."""

    name = "markov_excess"
    config_type = ExcessConfig

    def __call__(self, trainer: Any) -> dict[str, float]:
        texts = np.stack([sample(self.config.length, seed=100 + row) for row in range(self.config.rows)])
        ids = torch.tensor(trainer.tokenizer.convert_tokens_to_ids(list(SYMBOLS)))[torch.from_numpy(texts)]
        logits = trainer.engines["model"](input_ids=ids.to(trainer.device)).logits[:, 1:-1].float()
        targets = ids[:, 2:].to(trainer.device)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
        source = float(np.mean([losses(text, 2) for text in texts]))
        return {"nats": loss, "nats/source": source, "excess": loss - source}


class PrintFigures(Callback):
    """Prints the losses of the model, the source, and simpler models of it."""

    name = "markov_figures"

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        if is_main():
            counted, text = sample(400_000, seed=0), sample(100_000, seed=2)
            bigram, unigram = losses(text, 1, counted), losses(text, 0, counted)
            best, simpler = values["nats/source"], f"bigram {bigram:.3f}, unigram {unigram:.3f}"
            print(f"nats per symbol: model {values['nats']:.4f}, source {best:.4f}, {simpler}", flush=True)
