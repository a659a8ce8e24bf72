"""Flows: their likelihoods against zuko, closed forms and scipy, and that no split of the global batch changes them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from arctic_training import get_config, normal
from arctic_training.errors.types import DataError, InputError, MissingDependencyError, ModelError, RecipeError
from arctic_training.model import zuko_factory
from arctic_training.objectives.flow import FlowTrainer, path_log_probs
from arctic_training.objectives.ode import solve_ode
from arctic_training.testing import check_cut, check_resume
from tests import processes
from tests.objectives.tiny_runs import gradients

NLL = {"objective": "nll", "model": {"type": "zuko", "features": 2, "transforms": 2, "hidden_sizes": [8], "bins": 4}}
MATCHING = {"objective": "flow_matching", "model": {"type": "time_mlp", "sizes": [2, 8, 2], "time_size": 4}}
LABELED_NLL = {**NLL, "model": {**NLL["model"], "num_labels": 3}}
LABELED_MATCHING = {**MATCHING, "model": {**MATCHING["model"], "num_labels": 3}, "label_dropout": 0.4}


def labeled(folder: Path) -> dict[str, Any]:
    """The section of data with labels, one of which is none."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "labeled.npz"
    if not file.exists():
        labels = np.arange(21) % 4
        rows = np.random.default_rng(0).normal(size=(21, 2)).astype(np.float32)
        np.savez(file, rows=rows, labels=np.where(labels == 3, -100, labels))
    return {"sources": [str(file)], "eval_sources": [str(file)]}


def make_recipe(folder: Path, **keys: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    points = folder / "points.npy"
    if not points.exists():
        np.save(points, np.random.default_rng(0).normal(size=(21, 2)).astype(np.float32))
    recipe = {
        "type": "flow",
        "data": {"sources": [str(points)], "eval_sources": [str(points)]},
        "optimizer": {"type": "sgd", "lr": 0.1},
        "deepspeed": {"gradient_clipping": 0},
        "micro_batch_size": 8,
        "train_iters": 3,
        "loss_log_interval": 0,
        "output_dir": str(folder / "run"),
        "logger": {"level": "ERROR"},
    }
    return recipe | keys


def make_trainer(folder: Path, **keys: Any) -> FlowTrainer:
    return FlowTrainer(get_config(make_recipe(folder, **keys)))


def test_the_loss_is_zukos_likelihood(tmp_path: Path) -> None:
    """Its mean and the gradient of it, by the library alone."""
    import zuko

    trainer = make_trainer(tmp_path, **NLL)
    flow = zuko.flows.NSF(2, transforms=2, hidden_features=[8], bins=4)
    flow.load_state_dict(trainer.model.module.flow.state_dict())
    rows = torch.randn(6, 2)
    loss = trainer.loss({"rows": rows, "draw": torch.arange(6), "num_items_in_batch": 6.0})
    expected = -flow().log_prob(rows).mean()
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for gradient, parameter in zip(gradients(trainer, loss).values(), flow.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    trainer.close()


@pytest.mark.parametrize("flow", ["nsf", "maf", "realnvp"])
def test_a_density_has_the_integral_1_and_samples_are_of_it(flow: str, tmp_path: Path) -> None:
    model = {name: value for name, value in NLL["model"].items() if flow == "nsf" or name != "bins"} | {"flow": flow}
    trainer = make_trainer(tmp_path, **NLL | {"model": model})
    side = torch.linspace(-32, 32, 401)
    with torch.no_grad():
        log_probs = trainer.log_probs(torch.cartesian_prod(side, side))
        rows = trainer.sample(4000)
        assert float(log_probs.exp().sum()) * 0.16**2 == pytest.approx(1, abs=2e-3)
        assert rows.shape == (4000, 2)
        torch.testing.assert_close(rows[:3], trainer.sample(3))
        # the mean of 1 / q over samples within a square is its area
        inside = rows.abs().amax(1) < 1
        weights = inside * (-trainer.log_probs(rows)).exp()
    assert float(weights.mean()) == pytest.approx(4, abs=4 * float(weights.std()) / 4000**0.5)
    trainer.close()


def gaussian_velocity(mean: float, deviation: float) -> Any:
    """The exact velocity of flow matching to a Gaussian: the mean of data - noise given the point between them."""

    def velocity(points: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        t = times[:, None]
        variance = t**2 * deviation**2 + (1 - t) ** 2
        return mean + (t * deviation**2 - (1 - t)) / variance * (points - t * mean)

    return velocity


def test_the_path_to_a_gaussian_has_its_density_and_its_samples() -> None:
    mean, deviation, velocity = 1.5, 0.4, gaussian_velocity(1.5, 0.4)
    points = torch.randn(50, 3, dtype=torch.float64)
    log_probs = path_log_probs(velocity, mean + deviation * points, steps=60, solver="rk4")
    expected = stats.norm(mean, deviation).logpdf((mean + deviation * points).numpy()).sum(1)
    np.testing.assert_allclose(log_probs.numpy(), expected, atol=1e-5)
    field = lambda rows, time: velocity(rows, torch.full([len(rows)], time, dtype=torch.float64))  # noqa: E731
    ends = solve_ode(field, points, start=0, end=1, steps=60, solver="rk4")
    torch.testing.assert_close(ends, mean + deviation * points, rtol=0, atol=1e-5)


def test_the_evaluated_likelihood_is_that_of_scipys_solver(tmp_path: Path) -> None:
    keys = {**MATCHING, "ode_solver": "rk4", "ode_steps": 30, "eval_likelihood": True, "train_iters": 1}
    trainer = make_trainer(tmp_path, **keys, micro_batch_size=7)
    trainer.train()
    rows = np.load(tmp_path / "points.npy")
    module = copy.deepcopy(trainer.model.module).double()

    def velocity(points: torch.Tensor, time: float) -> torch.Tensor:
        return module(points[None], torch.tensor([time], dtype=torch.float32))[0]

    def derivative(time: float, state: np.ndarray) -> np.ndarray:
        point = torch.tensor(state[:2])
        jacobian: Any = torch.autograd.functional.jacobian(lambda x: velocity(x, time), point)
        return np.append(velocity(point, time).detach().numpy(), jacobian.trace())

    expected = []
    for row in rows[:3]:
        end = solve_ivp(derivative, (1, 0), np.append(row.astype(np.float64), 0), rtol=1e-6, atol=1e-6).y[:, -1]
        expected.append(stats.norm.logpdf(end[:2]).sum() + end[2])
    np.testing.assert_allclose(trainer.log_probs(torch.from_numpy(rows[:3])).numpy(), expected, atol=2e-3)
    values = trainer.evaluate()
    assert values["nll/eval"] == pytest.approx(-float(trainer.log_probs(torch.from_numpy(rows)).mean()), abs=1e-5)
    assert all(parameter.requires_grad for parameter in trainer.model.module.parameters())
    trainer.close()


def test_the_error_is_that_of_the_velocity_on_the_way_from_noise_to_data(tmp_path: Path) -> None:
    """With times and noise as the draws of the rows say, of a network that is not trained."""
    from arctic_training import uniform

    trainer = make_trainer(tmp_path, **MATCHING)
    rows, draw = torch.randn(5, 2), torch.arange(5) + 9
    loss = trainer.loss({"rows": rows, "draw": draw, "num_items_in_batch": 5.0})
    seed = trainer.config.seed
    noise, time = normal(draw, 2, seed=seed), uniform(draw, 1, seed=seed, stream=1).float()
    errors = trainer.model.module((1 - time) * noise + time * rows, time[:, 0]) - (rows - noise)
    torch.testing.assert_close(loss, errors.square().sum() / 5)
    trainer.close()


@pytest.mark.parametrize("keys", [NLL, {**MATCHING, "time_sampling": "u_shaped"}], ids=["nll", "flow_matching"])
def test_no_split_of_the_global_batch_changes_it(keys: dict[str, Any], tmp_path: Path) -> None:
    assert check_cut(make_recipe(tmp_path, **keys), cuts=[(2, 4)]) == 1


@pytest.mark.parametrize("keys", [{**LABELED_NLL, "label_dropout": 0.4}, LABELED_MATCHING], ids=["nll", "matching"])
def test_no_split_of_the_global_batch_changes_what_labels_are_dropped(keys: dict[str, Any], tmp_path: Path) -> None:
    assert check_cut(make_recipe(tmp_path, **keys, data=labeled(tmp_path)), cuts=[(2, 4)]) == 1


def test_the_loss_is_zukos_likelihood_given_the_label(tmp_path: Path) -> None:
    """The context is 1 in the column of the label, and 0 in all of them for none; dropped in training alone."""
    import zuko

    trainer = make_trainer(tmp_path, **LABELED_NLL, label_dropout=0.5, data=labeled(tmp_path))
    flow = zuko.flows.NSF(2, context=3, transforms=2, hidden_features=[8], bins=4)
    flow.load_state_dict(trainer.model.module.flow.state_dict())
    rows, labels = torch.randn(60, 2), torch.tensor([0, 2, -100, 1]).repeat(15)
    context = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]).repeat(15, 1)
    batch = {"rows": rows, "labels": labels, "draw": torch.arange(60), "num_items_in_batch": 60.0}
    expected = flow(context).log_prob(rows)
    torch.testing.assert_close(trainer.log_probs(rows, labels), expected)
    torch.testing.assert_close(trainer.log_probs(rows), flow(torch.zeros(60, 3)).log_prob(rows))
    assert not torch.allclose(trainer.loss(batch), -expected.mean())
    trainer.model.eval()
    torch.testing.assert_close(trainer.loss(batch), -expected.mean())
    samples = trainer.sample(4, labels[:4])
    noise = normal(torch.arange(4), 2, seed=trainer.config.seed, stream=2)
    torch.testing.assert_close(samples, flow(context[:4]).transform.inv(noise))
    torch.testing.assert_close(trainer.sample(3), trainer.sample(3, torch.arange(3)))
    trainer.close()


def test_the_likelihood_of_each_row_is_given_its_own_label(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **LABELED_MATCHING, ode_steps=4, data=labeled(tmp_path))
    rows, labels = torch.randn(4, 2), torch.tensor([0, 2, -100, 1])
    together = trainer.log_probs(rows, labels)
    for n in range(4):
        torch.testing.assert_close(trainer.log_probs(rows[n : n + 1], labels[n : n + 1])[0], together[n])
    assert not torch.allclose(trainer.log_probs(rows, labels.flip(0)), together, rtol=1e-3)
    trainer.close()


def test_guidance_goes_on_from_no_label_to_the_label(tmp_path: Path) -> None:
    """Of one step by euler a row is linear in the velocity."""
    trainer = make_trainer(tmp_path, **LABELED_MATCHING, ode_solver="euler", ode_steps=1, data=labeled(tmp_path))
    labels, none = torch.tensor([0, 1, 2]), torch.full((3,), -100)
    conditional, unconditional = trainer.sample(3, labels), trainer.sample(3, none)
    assert not torch.allclose(conditional, unconditional, atol=1e-4)
    for scale in (0.0, 3.0):
        expected = unconditional + scale * (conditional - unconditional)
        guided = trainer.sample(3, labels, guidance_scale=scale)
        torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    trainer.config.guidance_scale = 3.0
    torch.testing.assert_close(trainer.sample(3, labels), guided)
    trainer.close()


def test_a_u_net_moves_pictures(tmp_path: Path) -> None:
    np.save(tmp_path / "pictures.npy", np.random.default_rng(0).normal(size=(8, 4, 4)).astype(np.float32))
    network = {"type": "unet", "widths": [4], "groups": 2, "time_size": 4}
    data = {"sources": [str(tmp_path / "pictures.npy")]}
    trainer = make_trainer(tmp_path, objective="flow_matching", model=network, data=data, ode_steps=2, train_iters=1)
    trainer.train()
    assert trainer.sample(2).shape == (2, 4, 4)
    trainer.close()


def resumes(folder: str, stage: int) -> int:
    block = {"zero_optimization": {"stage": stage}}
    return check_resume(make_recipe(Path(folder), **NLL, deepspeed=block), steps=3, thorough=False)


def test_a_flow_of_zuko_resumes_in_shards(tmp_path: Path) -> None:
    make_recipe(tmp_path)
    assert min(processes.share(resumes, 2, str(tmp_path), 3)) >= 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({**NLL, "time_sampling": "u_shaped"}, "time_sampling: is for objective: flow_matching; remove it"),
        ({**NLL, "eval_likelihood": True}, "eval_likelihood: is for objective: flow_matching"),
        ({**NLL, "ode_steps": 9}, "ode_steps: is for objective: flow_matching"),
        ({**NLL, "label_dropout": 0.1, "guidance_scale": 2}, "guidance_scale: guides the velocity of flow_matching"),
        ({**MATCHING, "guidance_scale": 2}, "guidance_scale: needs a network that is trained without labels too"),
        ({"model": MATCHING["model"]}, "model.type: time_mlp has no objective nll; use zuko"),
        ({**MATCHING, "model": NLL["model"]}, "model.type: zuko has no objective flow_matching; use time_mlp"),
        ({"model": {**NLL["model"], "flow": "maf"}}, "bins: is for flow: nsf; remove it"),
        ({"model": {"flow": "realnvp", "features": 1}}, "a coupling needs at least 2 features"),
        ({"model": {**NLL["model"], "dtype": "bf16"}}, "needs the precision of fp32"),
        ({**MATCHING, "ode_steps": 0}, "greater than or equal to 1"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    recipe = {"type": "flow", "data": {"sources": ["rows.npy"]}, **keys}
    with pytest.raises(RecipeError, match=message):
        get_config(recipe)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    wide = {**NLL, "model": {**NLL["model"], "features": 3}}
    with pytest.raises(ModelError, match=r"model: cannot be computed for rows of shape \[2\]"):
        make_trainer(tmp_path, **wide)
    narrow = {**MATCHING, "model": {**MATCHING["model"], "sizes": [2, 8, 1]}}
    with pytest.raises(ModelError, match=r"model: rows of shape \[2\] become \[1\]; expected \[2\]"):
        make_trainer(tmp_path, **narrow)
    with pytest.raises(InputError, match="label_dropout: the network reads no labels"):
        make_trainer(tmp_path, **NLL, label_dropout=0.1)
    with pytest.raises(DataError, match="no column labels; there are rows"):
        make_trainer(tmp_path, **LABELED_NLL)
    np.save(tmp_path / "points.npy", np.ones((9, 2), dtype=np.int64))
    with pytest.raises(DataError, match=r"rows are torch.int64; a density needs floats"):
        make_trainer(tmp_path, **NLL)
    np.savez(tmp_path / "named.npz", points=np.ones((9, 2), dtype=np.float32))
    with pytest.raises(DataError, match="no column rows; there are points"):
        make_trainer(tmp_path, **NLL, data={"sources": [str(tmp_path / "named.npz")]})


def test_without_zuko(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zuko_factory.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'arctic_training\[flow\]'"):
        make_trainer(tmp_path, **NLL)
