"""Running sums modulo 17: questions, a small model that answers them, and pairs of a right and a wrong answer."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from arctic_training import (
    Callback,
    ComponentConfig,
    DataSource,
    DataSourceConfig,
    DType,
    Evaluator,
    HumanInt,
    ModelConfig,
    ModelFactory,
    SamplingParams,
    SFTTrainer,
    TokenizerFactory,
    TrainingError,
    generate,
    is_main,
)
from arctic_training.config.sections.tokenizer import TokenizerConfig

MODULUS, LENGTH = 17, 4
PAD, END = "<|pad|>", "<|end|>"


def questions(split: str, seed: int) -> Iterator[tuple[str, str]]:
    """Yields different questions and their answers, without end. One question in four is held out, by its hash."""
    draw, seen = random.Random(f"{split} {seed}"), set()
    while True:
        numbers = [draw.randrange(MODULUS) for _ in range(LENGTH)]
        question = " ".join(map(str, numbers)) + " ="
        held_out = hashlib.sha256(question.encode()).digest()[0] < 64
        if held_out == (split != "train") and question not in seen:
            seen.add(question)
            yield question, " " + " ".join(str(total % MODULUS) for total in accumulate(numbers))


def take(count: int, split: str, seed: int = 0) -> list[tuple[str, str]]:
    """Returns the first ``count`` questions of ``split``, with their answers."""
    return [pair for pair, _ in zip(questions(split, seed), range(count), strict=False)]


def answer(engine: Any, tokenizer: Any, questions: Sequence[str], *, temperature: float = 0.0) -> list[str]:
    """Returns the model's answers to questions: greedy, or sampled with a ``temperature`` above 0."""
    params = SamplingParams(LENGTH + 1, temperature)
    completions = generate(engine, tokenizer(list(questions))["input_ids"], params, tokenizer=tokenizer, batch_size=500)
    return [f" {text.strip()}" for text in completions.texts(tokenizer)]


class SumsConfig(DataSourceConfig):
    """Keys of both sources."""

    count: HumanInt = 10_000
    """Questions."""
    seed: int = 0


class SumsSource(DataSource):
    """Questions with their answers."""

    name = "sums"
    config_type = SumsConfig

    def load(self, config: SumsConfig, split: str) -> Any:
        from datasets import Dataset

        pairs = take(config.count, split, config.seed)
        return Dataset.from_dict({"prompt": [q for q, _ in pairs], "completion": [a for _, a in pairs]})


class PairsSource(DataSource):
    """The right answer to a question beside a wrong one, which the untrained policy itself generated.

    ``count`` questions are asked; those that it answers right make no pair.
    """

    name = "sums_pairs"
    config_type = SumsConfig

    def load(self, config: SumsConfig, split: str) -> Any:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM

        run = self.data_factory.trainer
        model = AutoModelForCausalLM.from_pretrained(run.config.model.name_or_path, dtype=torch.float32).eval()
        problems = take(config.count, split, config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            answers = answer(model, run.tokenizer, [question for question, _ in problems], temperature=1.0)
        rows = [(q, right, wrong) for (q, right), wrong in zip(problems, answers, strict=True) if wrong != right]
        return Dataset.from_dict(dict(zip(("prompt", "chosen", "rejected"), zip(*rows, strict=True), strict=True)))


class SuccessConfig(ComponentConfig):
    """Keys of the evaluator."""

    count: HumanInt = 2_000
    """Held-out questions."""


class SuccessEvaluator(Evaluator):
    """Measures the share of held-out questions that are answered right, word for word, by greedy decoding."""

    name = "sums_success"
    config_type = SuccessConfig

    def __call__(self, trainer: Any) -> dict[str, float]:
        problems = take(self.config.count, "eval", seed=1)
        answers = answer(trainer.engines["model"], trainer.tokenizer, [question for question, _ in problems])
        right = sum(expected == actual for (_, expected), actual in zip(problems, answers, strict=True))
        return {"success": right / len(problems)}


class PrintFigures(Callback):
    """Prints both figures of preference training, before and after."""

    name = "sums_figures"

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        when = "after" if trainer.progress.step else "before"
        labels = {"success": "success", "accuracy/eval": "accuracy on held-out pairs"}
        for name, label in labels.items():
            if is_main() and name in values:
                print(f"{label} {when}: {values[name]:.1%}", flush=True)


class UntilConfig(ComponentConfig):
    """Keys of the callback."""

    success: float = 0.8
    """Share of right answers at which training ends."""


class StopAtSuccess(Callback):
    """Ends the run when the model is good enough. A run that ends before fails."""

    name = "sums_until"
    config_type = UntilConfig

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        if values["success"] >= self.config.success:
            trainer.stop(f"{values['success']:.1%} of the answers are right")

    def post_train(self, trainer: Any) -> None:
        if not (trainer.finished or trainer.stop_requested):
            raise TrainingError(
                f"{self.label}.success: {self.config.success:g} was not reached in {trainer.progress.step} steps; "
                "train longer, or accept less"
            )


class SumsModelConfig(ModelConfig):
    """Keys of the model."""

    dtype: DType = "fp32"
    layers: int = 2
    width: int = 96


class SumsModelFactory(ModelFactory[SumsModelConfig]):
    """A small Llama with random weights."""

    name = "sums"
    config_type = SumsModelConfig

    def create_model(self, config: Any) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer, width = self.trainer.tokenizer, self.config.width
        llama = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=self.config.layers,
            num_attention_heads=4,
            max_position_embeddings=32,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        model: nn.Module = LlamaForCausalLM(llama)
        return model


class SumsTokenizerFactory(TokenizerFactory[TokenizerConfig]):
    """A token for each number."""

    name = "sums"

    def create_tokenizer(self) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = [PAD, END, "=", *map(str, range(MODULUS))]
        tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=None, model_max_length=32
        )


class StartTrainer(SFTTrainer):
    """Trains the model that preferences are to improve, with the supervised loss."""

    name = "sums_start"
    model_factory_type = SumsModelFactory
    tokenizer_factory_type = SumsTokenizerFactory
