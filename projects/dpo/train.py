"""Pairs of a right answer and a wrong one of the untrained policy, and the share of answers that are right."""

from collections.abc import Sequence
from typing import Any

import torch

from arctic_training import Evaluator, GeneratorSource, SamplingParams, generate


def complete(model: Any, tokenizer: Any, prompts: Sequence[str], *, temperature: float = 0.0) -> list[str]:
    """Returns the model's answers to prompts: greedy, or sampled with a ``temperature`` above 0."""
    params = SamplingParams(max_new_tokens=5, temperature=temperature)
    completions = generate(model, tokenizer(list(prompts))["input_ids"], params, tokenizer=tokenizer, batch_size=500)
    return [text.strip() for text in completions.texts(tokenizer)]


class SumsSource(GeneratorSource):
    """Problems as the lexer's chat template renders them, and their right answers."""

    name = "sums"

    def load(self, config: Any, split: str) -> Any:
        rows = super().load(config, split).rename_columns({"problem": "prompt", "answer": "chosen"})
        return rows.map(lambda row: {"prompt": f"{row['prompt']} [SEP]"})


class PairsSource(SumsSource):
    """The right answer to a problem beside a wrong one, which the untrained policy itself generated.

    ``count`` problems are asked; those that it answers right, or not with numbers, make no pair.
    """

    name = "sums_pairs"

    def fingerprint(self, split: str) -> None:
        """Returns nothing: the rows depend on the weights of the policy."""

    def load(self, config: Any, split: str) -> Any:
        from transformers import AutoModelForCausalLM

        run, rows = self.data_factory.trainer, super().load(config, split)
        model = AutoModelForCausalLM.from_pretrained(run.config.model.name_or_path, dtype=torch.float32).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            answers = complete(model, run.tokenizer, rows["prompt"], temperature=1.0)
        pairs = rows.add_column("rejected", answers)
        # an answer with a special token in it is none
        return pairs.filter(lambda row: row["rejected"] not in ("", row["chosen"]) and "[" not in row["rejected"])


class SuccessEvaluator(Evaluator):
    """Measures the share of other problems, like those of the evaluation set, that are answered right, greedily."""

    name = "sums_success"

    def __call__(self, trainer: Any) -> dict[str, float]:
        problems = trainer.config.data.eval_sources[0].model_copy(update={"type": "sums", "seed": 1})
        rows = SumsSource(None, problems)("eval")
        answers = complete(trainer.engines["model"], trainer.tokenizer, rows["prompt"])
        return {"success": sum(map(str.__eq__, answers, rows["chosen"])) / len(rows)}
