"""For each trainer a recipe of two epochs of a few steps on tiny models, with dropout where there can be."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny

Recipe = dict[str, Any]
_FP32 = {"dtype": "fp32"}


def _language(folder: Path, rows: Path, **data: Any) -> Recipe:
    model = folder / "model"
    if not model.exists():
        tiny.save_model(model)
    return {
        "model": {"name_or_path": str(model), **_FP32, "hf_config_kwargs": {"attention_dropout": 0.1}},
        "data": {"sources": [str(rows)], "max_length": 400, "cache_dir": str(folder / "cache"), **data},
        "optimizer": {"lr": 1e-3},
        "micro_batch_size": 2,
    }


def _lines(path: Path, rows: Iterable[Any]) -> Path:
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sft(folder: Path) -> Recipe:
    return _language(folder, _lines(folder / "chats.jsonl", tiny.chats(10)))


def causal(folder: Path) -> Recipe:
    texts = (" ".join(turn["content"] for turn in row["messages"]) for row in tiny.chats(12, seed=3))
    return _language(folder, _lines(folder / "text.jsonl", ({"text": text} for text in texts)), max_length=40)


def autoregressive(folder: Path) -> Recipe:
    return {**causal(folder), "scheduled_sampling": "linear", "sampling_probability": 0.5}


def seq2seq(folder: Path) -> Recipe:
    if not (model := folder / "encoder_decoder").exists():
        tiny.save_encoder_decoder(model)
    pairs = [
        {"source": question["content"], "target": answer["content"]}
        for question, answer in (row["messages"][:2] for row in tiny.chats(10, seed=6))
    ]
    sections = _language(folder, _lines(folder / "pairs_of_texts.jsonl", pairs), max_length=64)
    sections["model"] = {"name_or_path": str(model), **_FP32, "hf_config_kwargs": {"dropout_rate": 0.1}}
    return sections


def dpo(folder: Path) -> Recipe:
    pairs = [
        {"chosen": good["messages"][:2], "rejected": [good["messages"][0], bad["messages"][1]]}
        for good, bad in zip(tiny.chats(10, seed=4), tiny.chats(10, seed=5), strict=True)
    ]
    return _language(folder, _lines(folder / "pairs.jsonl", pairs))


def kto(folder: Path) -> Recipe:
    rows = ({**row, "label": n % 3 > 0} for n, row in enumerate(tiny.chats(10, seed=7)))
    return _language(folder, _lines(folder / "rated.jsonl", rows))


def embedding(folder: Path) -> Recipe:
    texts = [" ".join(turn["content"] for turn in row["messages"]) for row in tiny.chats(30, seed=8)]
    columns = ("anchor", "positive", "negative")
    rows = (dict(zip(columns, texts[3 * n : 3 * n + 3], strict=True)) for n in range(10))
    return _language(folder, _lines(folder / "texts.jsonl", rows))


def reward(folder: Path) -> Recipe:
    settings = dpo(folder)
    settings["model"] |= {"new_weights": ["score"]}
    return {**settings, "disable_dropout": False}


def classifier(folder: Path) -> Recipe:
    texts = (" ".join(turn["content"] for turn in row["messages"]) for row in tiny.chats(10, seed=6))
    labels = ["even", "odd", "neither"]
    rows = ({"text": text, "label": labels[len(text) % 3]} for text in texts)
    settings = _language(folder, _lines(folder / "labels.jsonl", rows))
    settings["model"] |= {"new_weights": ["score"], "labels": labels}
    return settings


def tensor_classifier(folder: Path) -> Recipe:
    points, labels = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32), np.arange(20) % 3
    file = folder / "labeled_points.npz"
    if not file.exists():
        np.savez(file, rows=points, labels=labels)
    return {
        "model": {"type": "mlp", "sizes": [2, 8, 3], "dropout": 0.1},
        "data": {"sources": [{"type": "tensor_file", "name_or_path": str(file)}]},
        "optimizer": {"lr": 1e-3},
        "micro_batch_size": 4,
    }


def grpo(folder: Path) -> Recipe:
    settings = _language(folder, _lines(folder / "chats.jsonl", tiny.chats(10)))
    rewards = [{"type": "length", "free": 0, "limit": 12}, {"type": "contains", "weight": 0.5}]
    # a model that knows nothing ends its answers by chance: so that their lengths, and what they are worth, differ
    ends = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return {**settings, "rewards": rewards, "num_generations": 3, "max_new_tokens": 6, "temperature": 1.2, "stop": ends}


def distill(folder: Path) -> Recipe:
    teacher = folder / "teacher"
    if not teacher.exists():
        tiny.save_model(teacher, seed=1)
    section = {"name_or_path": str(teacher), **_FP32}
    return {**sft(folder), "teacher": section, "divergence": "jensen_shannon", "ce_weight": 0.2, "hidden_weight": 0.1}


def reinforce(folder: Path) -> Recipe:
    more = {"gamma": 0.95, "baseline": "mean", "normalize_returns": True, "num_iterations": 2, "dynamic_sampling": 2}
    return {**grpo(folder), **more}


def ppo(folder: Path) -> Recipe:
    critic = {"new_weights": ["score"]}
    return {**grpo(folder), "critic": critic, "num_iterations": 2, "critic_optimizer": {"lr": 1e-3}, "beta": 0.1}


def gan(folder: Path) -> Recipe:
    points = folder / "points.npy"
    if not points.exists():
        np.save(points, np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32))
    return {
        "model": {"type": "mlp", "sizes": [2, 8, 2]},
        "discriminator": {"type": "mlp", "sizes": [2, 8, 1]},
        "data": {"sources": [{"type": "tensor_file", "name_or_path": str(points)}]},
        "optimizer": {"lr": 1e-3},
        "discriminator_optimizer": {"lr": 1e-3},
        "micro_batch_size": 4,
        "loss": "hinge",
        "latent_size": 2,
        "callbacks": [{"type": "ema", "decay": 0.9}],
    }


def vae(folder: Path) -> Recipe:
    bits = folder / "bits.npy"
    if not bits.exists():
        np.save(bits, np.random.default_rng(0).integers(0, 2, size=(20, 4)).astype(np.float32))
    return {
        "model": {
            "type": "autoencoder",
            "encoder": {"sizes": [4, 8, 4], "dropout": 0.1},
            "decoder": {"sizes": [2, 8, 4]},
        },
        "data": {"sources": [{"type": "tensor_file", "name_or_path": str(bits)}]},
        "optimizer": {"lr": 1e-3},
        "micro_batch_size": 4,
        "kl_annealing": "linear",
        "free_bits": 0.05,
        "importance_samples": 3,
    }


def flow(folder: Path) -> Recipe:
    model = {"type": "time_mlp", "sizes": [2, 8, 2], "time_size": 4, "dropout": 0.1}
    return _density(folder, model) | {"objective": "flow_matching", "time_sampling": "logit_normal"}


def energy(folder: Path) -> Recipe:
    model = {"type": "mlp", "sizes": [2, 8, 1], "activation": "silu", "dropout": 0.1}
    return _density(folder, model) | {"method": "pcd", "mcmc_steps": 3, "mala": True, "replay_size": 10}


def _density(folder: Path, model: dict[str, Any]) -> Recipe:
    settings = gan(folder)
    return {name: settings[name] for name in ("data", "optimizer", "micro_batch_size")} | {"model": model}


def diffusion(folder: Path) -> Recipe:
    settings = tensor_classifier(folder)
    model = {"type": "time_mlp", "sizes": [2, 8, 2], "time_size": 4, "num_labels": 3, "dropout": 0.1}
    options = {"prediction": "v", "timesteps": 20, "sampling_steps": 4, "label_dropout": 0.2}
    return {**settings, **options, "model": model, "callbacks": [{"type": "ema", "decay": 0.9}]}


CASES: dict[str, Callable[[Path], Recipe]] = {
    "autoregressive": autoregressive,
    "causal": causal,
    "classifier": classifier,
    "diffusion": diffusion,
    "distill": distill,
    "dpo": dpo,
    "embedding": embedding,
    "energy": energy,
    "flow": flow,
    "gan": gan,
    "grpo": grpo,
    "kto": kto,
    "reward": reward,
    "ppo": ppo,
    "reinforce": reinforce,
    "seq2seq": seq2seq,
    "sft": sft,
    "tensor_classifier": tensor_classifier,
    "vae": vae,
}


def recipe(name: str, folder: Path, **more: Any) -> Recipe:
    """The case of the trainer ``name``; its files go to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    quiet = {"loss_log_interval": 0, "logger": {"level": "ERROR"}}
    return {"type": name, "epochs": 2, "seed": 7, **quiet, **CASES[name](folder), **more}
