"""Networks that do not fit the rows of tensors, and rows that an objective cannot use."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.bad_inputs.case import Case


def rows(*shape: int, high: int = 1, dtype: str = "float32") -> Callable[[Path], object]:
    """A file of numbers from 0 to ``high``."""
    return lambda at: np.save(at, np.linspace(0, high, int(np.prod(shape))).reshape(shape).astype(dtype))


def labelled(*shape: int, labels: Sequence[float], dtype: str = "int64") -> Callable[[Path], object]:
    """A file of rows with a label each."""
    return lambda at: np.savez(at, rows=np.zeros(shape, np.float32), labels=np.array(labels, dtype))


def case(says: str, trainer: str, content: Callable[[Path], object], *, file: str = "points.npy") -> Case:
    return Case(
        says, recipe=f"{trainer}\ndata: {{sources: [{file}]}}\n", files={file.split("]")[0]: content}, cached=True
    )


def vae(encoder: str, decoder: str, more: str = "") -> str:
    return f"type: vae\nmodel: {{encoder: {encoder}, decoder: {decoder}}}{more}"


def classifier(outputs: int) -> str:
    return f"type: tensor_classifier\nmodel: {{type: mlp, sizes: [2, {outputs}]}}"


MLP = "type: mlp, sizes:"
GAN = f"type: gan\nlatent_size: 4\nmodel: {{{MLP} [%s]}}\ndiscriminator: {{{MLP} [%s]}}"
FLOW = "type: flow\nobjective: flow_matching\nmodel: {%s}"
DIFFUSION = "type: diffusion\nmodel: {%s}"
ENERGY = f"type: energy\nmodel: {{{MLP} [%s]}}"

CASES: dict[str, Case] = {
    "an encoder of other rows": case(
        "recipe.yaml:2:9: model.encoder: cannot be computed for rows of shape [2] in data.sources: ...",
        vae("{sizes: [3, 4]}", "{sizes: [2, 2]}"),
        rows(4, 2),
    ),
    "an encoder of odd outputs": case(
        "recipe.yaml:2:9: model.encoder: rows become [3]; expected [2 x latents], means and log variances",
        vae("{sizes: [2, 3]}", "{sizes: [2, 2]}"),
        rows(4, 2),
    ),
    "a decoder of other latents": case(
        "recipe.yaml:2:35: model.decoder: cannot be computed for 2 latents: ...",
        vae("{sizes: [2, 4]}", "{sizes: [3, 2]}"),
        rows(4, 2),
    ),
    "a decoder of other rows": case(
        "recipe.yaml:2:35: model.decoder: 2 latents become [3]; expected [2]",
        vae("{sizes: [2, 4]}", "{sizes: [2, 3]}"),
        rows(4, 2),
    ),
    "values that are no probabilities": case(
        "recipe.yaml:4:8: data.sources: values from 0 to 3, and reconstruction: bernoulli needs values from "
        "0 to 1; scale them, or set reconstruction: mse",
        vae("{sizes: [2, 4]}", "{sizes: [2, 2]}", "\nreconstruction: bernoulli"),
        rows(4, 2, high=3),
    ),
    "a generator of other latents": case(
        "recipe.yaml:3:1: model: cannot be computed for 4 latents: ...", GAN % ("3, 2", "2, 1"), rows(4, 2)
    ),
    "a generator of other rows": case(
        "recipe.yaml:3:1: model: 4 latents become [3]; expected [2]", GAN % ("4, 3", "2, 1"), rows(4, 2)
    ),
    "a discriminator of other rows": case(
        "recipe.yaml:4:1: discriminator: cannot be computed for rows of shape [2] in data.sources: ...",
        GAN % ("4, 2", "3, 1"),
        rows(4, 2),
    ),
    "a discriminator of several numbers": case(
        "recipe.yaml:4:1: discriminator: rows of shape [2] become [2]; expected [1]", GAN % ("4, 2", "2, 2"), rows(4, 2)
    ),
    "a velocity of other rows": case(
        "recipe.yaml:3:1: model: cannot be computed for rows of shape [2] in data.sources: ...",
        FLOW % "type: time_mlp, sizes: [3, 8, 3]",
        rows(4, 2),
    ),
    "a density of other rows": case(
        "recipe.yaml:2:1: model: cannot be computed for rows of shape [2] in data.sources: ...",
        "type: flow\nmodel: {features: 3, transforms: 1}",
        rows(4, 2),
    ),
    "a density of whole numbers": case(
        "recipe.yaml:3:8: data.sources: rows are torch.int64; a density needs floats, such as pixels from 0 to 1",
        "type: flow\nmodel: {features: 2, transforms: 1}",
        rows(4, 2, dtype="int64"),
    ),
    "a denoiser of other rows": case(
        "recipe.yaml:2:1: model: cannot be computed for rows of shape [2] in data.sources: ...",
        DIFFUSION % "sizes: [3, 8, 3]",
        rows(4, 2),
    ),
    "a denoiser of longer rows": case(
        "recipe.yaml:2:1: model: rows of shape [2] become [3]; expected [2]", DIFFUSION % "sizes: [2, 8, 3]", rows(4, 2)
    ),
    "a denoiser of single numbers": case(
        "recipe.yaml:3:8: data.sources: rows are single numbers; expected [rows, ...]",
        DIFFUSION % "sizes: [1, 8, 1]",
        rows(4),
    ),
    "a picture of other channels": case(
        "recipe.yaml:2:1: model: cannot be computed for rows of shape [3, 4, 4] in data.sources: ...",
        DIFFUSION % "type: unet, channels: 1, widths: [8]",
        rows(4, 3, 4, 4),
    ),
    "an energy of other rows": case(
        "recipe.yaml:2:1: model: cannot be computed for rows of shape [2] in data.sources: ...",
        ENERGY % "3, 1",
        rows(4, 2),
    ),
    "an energy of several numbers": case(
        "recipe.yaml:2:1: model: rows of shape [2] become [2]; expected [1]", ENERGY % "2, 2", rows(4, 2)
    ),
    "an energy of whole numbers": case(
        "recipe.yaml:3:8: data.sources: rows are torch.int64; a density needs floats, such as pixels from 0 to 1",
        ENERGY % "2, 1",
        rows(4, 2, dtype="int64"),
    ),
    "no rows": case(
        "recipe.yaml:3:8: data.sources: no column rows; there are points",
        ENERGY % "2, 1",
        lambda at: np.savez(at, points=np.zeros((4, 2))),
        file="points.npz",
    ),
    "an evaluation set of other rows": Case(
        "recipe.yaml:2:1: model: cannot be computed for rows of shape [3] in eval: ...",
        recipe=(ENERGY % "2, 1") + "\ndata: {sources: [points.npy], eval_sources: [others.npy]}\n",
        cached=True,
        files={"points.npy": rows(4, 2), "others.npy": rows(4, 3)},
    ),
    "a label beyond the outputs": case(
        "recipe.yaml:3:8: data.sources: expected labels from 0 to 1 for each row, or 2 floats; they are "
        "torch.int64 [3], up to 2",
        classifier(2),
        labelled(3, 2, labels=[0, 1, 2]),
        file="points.npz",
    ),
    "labels without a sign": case(
        "recipe.yaml:3:8: data.sources: labels are torch.uint8, which cannot hold -100 for no label; give int64",
        classifier(2),
        labelled(2, 2, labels=[0, 1], dtype="uint8"),
        file="points.npz",
    ),
    "no labels": case("recipe.yaml:3:8: data.sources: no column labels; there are rows", classifier(2), rows(4, 2)),
    "rows that a classifier cannot read": case(
        "recipe.yaml:2:1: model: cannot be computed for rows of shape [3] in data.sources: ...",
        classifier(2),
        labelled(2, 3, labels=[0, 1]),
        file="points.npz",
    ),
    "a label beyond the classes": case(
        "recipe.yaml:3:8: data.sources: expected int64 labels from 0 to 1, one for each row, -100 for none; "
        "they are torch.int64 [3], up to 2",
        DIFFUSION % "sizes: [2, 8, 2], num_labels: 2",
        labelled(3, 2, labels=[0, 1, 2]),
        file="points.npz",
    ),
    "samples of another size": case(
        "recipe.yaml:3:1: callbacks.sample_tensors.shape: [3] has 3 numbers, and a row of the data has 2; "
        "give another shape, or remove it",
        (DIFFUSION % "sizes: [2, 8, 2]") + "\ncallbacks: [{type: sample_tensors, shape: [3]}]",
        rows(4, 2),
    ),
    "a plot that does not suit the rows": case(
        "recipe.yaml:3:1: callbacks.visualization.plot: images does not suit rows of shape [2]",
        (DIFFUSION % "sizes: [2, 8, 2]") + "\ncallbacks: [{type: visualization, plot: images}]",
        rows(4, 2),
    ),
    "a metric of other classes": case(
        "recipe.yaml:3:1: evaluators: torchmetrics: classification.MulticlassF1Score fails on the first "
        "batch of eval: ...",
        classifier(3) + "\nevaluators: [{type: torchmetrics, metric: classification.MulticlassF1Score, kwargs: "
        "{num_classes: 2}}]\neval_interval: 1",
        labelled(3, 2, labels=[0, 1, 2]),
        file="points.npz], eval_sources: [points.npz",
    ),
}
