"""`python projects/algebra/references.py`: the share of held-out problems that rules answer right which learn nothing.

The rules are the most frequent answer of the training problems, and the first part of a problem.
"""

from collections import Counter
from pathlib import Path

from arctic_training import DataSourceConfig, get_config
from arctic_training.data.sources.generator import GeneratorSource

PROJECT = Path(__file__).parent
RECIPES = ("sums", "addition")


def problems(recipe: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the answers of the training and of the held-out problems of ``recipe``, by problem."""
    data = get_config(PROJECT / f"{recipe}.yaml").data

    def read(section: DataSourceConfig, split: str) -> dict[str, str]:
        return {row["problem"]: row["answer"] for row in GeneratorSource(None, section)(split)}

    return read(data.sources[0], "train"), read(data.eval_sources[0], "eval")


def main() -> None:
    for recipe in RECIPES:
        train, held = problems(recipe)
        both = len(train.keys() & held.keys())
        print(f"{recipe}: {len(train):,} problems to learn, {len(held):,} held out, {both} of them in both")
        frequent = Counter(train.values()).most_common(1)[0][0]
        answers = {f"the most frequent answer, {frequent}": [frequent] * len(held)}
        answers["the first part of the problem"] = [problem.partition(" | ")[0] for problem in held]
        for rule, own in answers.items():
            right = sum(one == expected for one, expected in zip(own, held.values(), strict=True))
            print(f"  {rule}: {right / len(held):.1%}")


if __name__ == "__main__":
    main()
