"""`python projects/embedding/references.py`: the same data, model and settings with sentence-transformers.

With a folder that arctic_training has saved it only measures: the figures are those of the run that saved it.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from arctic_training import get_config
from arctic_training.config.recipe.user_code import import_file

FOLDER = Path(__file__).resolve().parent
CONFIG = get_config(FOLDER / "recipe.yaml")
programs = import_file(FOLDER / "train.py").programs


def load(folder: str) -> SentenceTransformer:
    """Returns the model in ``folder``, which sees as much of a text as the recipe says."""
    model = SentenceTransformer(folder, device="cpu")
    model.max_seq_length = CONFIG.data.max_length
    return model


def measure(model: SentenceTransformer) -> str:
    """Returns the share of held-out questions whose program is found first, and the mean reciprocal rank."""
    questions, texts = zip(*programs("eval"), strict=True)
    ids = [str(number) for number in range(len(texts))]
    evaluator = InformationRetrievalEvaluator(
        dict(zip(ids, questions, strict=True)),
        dict(zip(ids, texts, strict=True)),
        {number: {number} for number in ids},
        accuracy_at_k=[1],
        mrr_at_k=[len(ids)],
        name="programs",
    )
    values = evaluator(model)
    first, rank = (values[f"programs_cosine_{name}"] for name in ("accuracy@1", f"mrr@{len(ids)}"))
    return f"found first {first:.1%}, MRR {rank:.3f} of {len(ids)}"


def train(model: SentenceTransformer) -> None:
    """Trains as the recipe says."""
    questions, texts = zip(*programs("train"), strict=True)
    with TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            max_steps=CONFIG.train_iters,
            per_device_train_batch_size=CONFIG.micro_batch_size,
            learning_rate=CONFIG.optimizer.learning_rate,
            weight_decay=CONFIG.optimizer.weight_decay,
            lr_scheduler_type=CONFIG.scheduler.name,
            warmup_steps=CONFIG.scheduler.warmup_ratio,
            adam_beta2=CONFIG.optimizer.betas[1],
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        )
        trainer = SentenceTransformerTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_dict({"anchor": questions, "positive": texts}),
            loss=MultipleNegativesRankingLoss(model, scale=1 / CONFIG.temperature),
        )
        trainer.train()


if __name__ == "__main__":
    if sys.argv[1:]:
        print(measure(load(sys.argv[1])))
    else:
        model = load(CONFIG.model.name_or_path)
        start = time.monotonic()
        train(model)
        print(f"trained in {time.monotonic() - start:.0f} s")
        print(f"after: {measure(model)}")
