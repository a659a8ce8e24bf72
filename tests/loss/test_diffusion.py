"""Formulas of diffusion, against the schedulers of diffusers, scipy, closed forms and a Gaussian of known denoiser."""

import math
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from scipy.special import logit
from scipy.stats import norm

from arctic_training.loss.diffusion import (
    NoiseSchedule,
    Prediction,
    TimestepSampling,
    Weighting,
    add_noise,
    denoised_rows,
    diffusion_loss_weights,
    diffusion_targets,
    draw_timesteps,
    noise_betas,
    noise_levels,
    reverse_step,
    sample_diffusion,
    sampling_timesteps,
)

diffusers = pytest.importorskip("diffusers")
SCHEDULES: dict[NoiseSchedule, str] = {
    "linear": "linear",
    "quadratic": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}
"""The names of diffusers."""
PREDICTIONS: dict[Prediction, str] = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}


def betas(schedule: NoiseSchedule = "linear", timesteps: int = 1000) -> torch.Tensor:
    return noise_betas(schedule, timesteps, start=1e-4, end=0.02, offset=0.008)


def scheduler(kind: str, prediction: Prediction, values: torch.Tensor, **more: Any) -> Any:
    return getattr(diffusers, kind)(
        num_train_timesteps=len(values),
        trained_betas=values.numpy(),
        prediction_type=PREDICTIONS[prediction],
        clip_sample=False,
        timestep_spacing="trailing",
        **more,
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_those_of_diffusers(schedule: NoiseSchedule) -> None:
    other = diffusers.DDPMScheduler(beta_schedule=SCHEDULES[schedule])
    torch.testing.assert_close(betas(schedule).float(), other.betas, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(noise_levels(betas(schedule)).float(), other.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_the_levels_of_cosine_and_sqrt_have_a_closed_form() -> None:
    times = torch.arange(1, 1000, dtype=torch.float64) / 1000
    cosine = ((times + 0.008) / 1.008 * math.pi / 2).cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(noise_levels(betas("cosine"))[:-1], cosine)
    torch.testing.assert_close(noise_levels(betas("sqrt"))[:-1], (1 - (times + 1e-4).sqrt()) / 0.99)


@pytest.mark.parametrize("timesteps", [50, 200, 4000])
@pytest.mark.parametrize("schedule", get_args(NoiseSchedule))
def test_any_number_of_timesteps_ends_in_noise(schedule: NoiseSchedule, timesteps: int) -> None:
    levels = noise_levels(betas(schedule, timesteps))
    assert (levels.diff() < 0).all() and (levels > 0).all()
    assert levels[-1] < (1e-3 if schedule == "quadratic" else 1e-4)
    assert levels[0] > 0.75


@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 4, 4)])
def test_noisy_rows_and_targets_are_those_of_diffusers(shape: tuple[int, ...]) -> None:
    rows, noise = torch.randn(shape), torch.randn(shape)
    timesteps = torch.tensor([0, 1, 250, 500, 998, 999])
    levels = noise_levels(betas())[timesteps]
    other = scheduler("DDPMScheduler", "v", betas())
    noisy = add_noise(rows, noise, levels)
    torch.testing.assert_close(noisy, other.add_noise(rows, noise, timesteps).float(), rtol=1e-4, atol=1e-5)
    velocity = other.get_velocity(rows, noise, timesteps).float()
    torch.testing.assert_close(diffusion_targets("v", rows, noise, levels), velocity, rtol=1e-4, atol=1e-5)
    assert torch.equal(diffusion_targets("epsilon", rows, noise, levels), noise)
    assert torch.equal(diffusion_targets("x0", rows, noise, levels), rows)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_right_prediction_gives_the_row_back(prediction: Prediction) -> None:
    rows, noise = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    levels = noise_levels(betas())[torch.tensor([0, 1, 250, 500, 998, 999])]
    noisy = add_noise(rows, noise, levels)
    torch.testing.assert_close(
        denoised_rows(prediction, diffusion_targets(prediction, rows, noise, levels), noisy, levels), rows
    )


def fractions(uniforms: torch.Tensor, sampling: TimestepSampling, **more: float) -> torch.Tensor:
    """Returns the times of which timesteps are drawn, by timesteps so many that they are exact."""
    options: dict[str, float] = {"mean": 0.0, "std": 1.0, "mode_scale": 1.29, **more}
    return draw_timesteps(uniforms, 10**12, sampling, **options) / 10**12


def test_uniform_timesteps() -> None:
    uniforms = torch.tensor([1e-9, 0.2499, 0.25, 0.999999], dtype=torch.float64)
    drawn = draw_timesteps(uniforms, 4, "uniform", mean=0, std=1, mode_scale=0)
    assert drawn.tolist() == [0, 0, 1, 3] and drawn.dtype == torch.int64


def test_logit_normal_timesteps_have_that_distribution() -> None:
    uniforms = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    times = fractions(uniforms, "logit_normal", mean=-0.5, std=1.5)
    torch.testing.assert_close(torch.tensor(norm.cdf(logit(times.numpy()), -0.5, 1.5)), uniforms, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_timesteps_are_those_of_diffusers(scale: float) -> None:
    from diffusers.training_utils import compute_density_for_timestep_sampling

    torch.manual_seed(0)
    expected = compute_density_for_timestep_sampling("mode", 400, mode_scale=scale)
    torch.manual_seed(0)
    uniforms = torch.rand(400)
    torch.testing.assert_close(fractions(uniforms.double(), "mode", mode_scale=scale).float(), expected)
    times = fractions(torch.linspace(1e-6, 1 - 1e-6, 400, dtype=torch.float64), "mode", mode_scale=scale)
    assert (times.diff() < 0).all() and times[0] > 0.999 and times[-1] < 0.001


def test_weights_worked_out() -> None:
    """At the levels 1/2 and 9/10 the ratios of signal and noise are 1 and 9."""
    levels = torch.tensor([0.5, 0.9], dtype=torch.float64)
    expected = {
        ("uniform", "epsilon"): [1, 1],
        ("uniform", "v"): [1, 1],
        ("snr", "x0"): [1, 9],
        ("snr", "epsilon"): [1, 1],
        ("snr", "v"): [1 / 2, 9 / 10],
        ("min_snr", "epsilon"): [1, 5 / 9],
        ("min_snr", "v"): [1 / 2, 5 / 10],
        ("min_snr", "x0"): [1, 5],
        ("edm", "x0"): [(1 + 0.25) / 0.25, (1 / 9 + 0.25) / (1 / 9 * 0.25)],
    }
    for (weighting, prediction), values in expected.items():
        weights = diffusion_loss_weights(weighting, prediction, levels, gamma=5, sigma_data=0.5)  # type: ignore[arg-type]
        assert weights.tolist() == pytest.approx(values), (weighting, prediction)


@pytest.mark.parametrize("weighting", ["snr", "min_snr", "edm"])
def test_a_weighted_loss_does_not_depend_on_what_is_predicted(weighting: Any) -> None:
    """The same network, read as one of noise, of rows or of velocities, has the same loss."""
    rows, noise, estimate = (torch.randn(6, 3).double() for _ in range(3))
    levels = noise_levels(betas())[torch.tensor([1, 10, 250, 500, 900, 999])]
    noisy = add_noise(rows, noise, levels)
    signal, scale = levels.sqrt()[:, None], (1 - levels).sqrt()[:, None]
    estimated_noise = (noisy - signal * estimate) / scale
    outputs: dict[Prediction, torch.Tensor] = {
        "x0": estimate,
        "epsilon": estimated_noise,
        "v": signal * estimated_noise - scale * estimate,
    }
    losses = [
        (output - diffusion_targets(prediction, rows, noise, levels)).square().mean(1)
        * diffusion_loss_weights(weighting, prediction, levels, gamma=5, sigma_data=0.5)
        for prediction, output in outputs.items()
    ]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


@pytest.mark.parametrize("weighting", get_args(Weighting))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradients_are_those_of_finite_differences(prediction: Prediction, weighting: Weighting) -> None:
    """Of a network's weights, and of the rows, which an encoder may have made."""
    torch.manual_seed(0)
    levels = noise_levels(betas())[torch.tensor([20, 250, 500, 900])]
    weights = diffusion_loss_weights(weighting, prediction, levels, gamma=5, sigma_data=0.5)

    def losses(matrix: torch.Tensor, rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        output = (add_noise(rows, noise, levels) @ matrix).tanh()
        return (output - diffusion_targets(prediction, rows, noise, levels)).square().mean(1) * weights

    def estimate(matrix: torch.Tensor, rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        noisy = add_noise(rows, noise, levels)
        return denoised_rows(prediction, (noisy @ matrix).tanh(), noisy, levels)

    inputs = [torch.randn(*shape).double().requires_grad_() for shape in ((3, 3), (4, 3), (4, 3))]
    assert torch.autograd.gradcheck(losses, inputs)
    assert torch.autograd.gradcheck(estimate, inputs)


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 50), (1000, 1000), (1000, 7), (10, 3), (1, 1)])
def test_sampling_begins_at_the_last_timestep(timesteps: int, steps: int) -> None:
    chosen = sampling_timesteps(timesteps, steps)
    assert chosen[0] == timesteps - 1 and len(chosen) == steps and chosen[-1] >= 0
    assert all(later < earlier for earlier, later in pairwise(chosen))
    other = scheduler("DDIMScheduler", "epsilon", betas(timesteps=timesteps))
    other.set_timesteps(steps)
    assert chosen == other.timesteps.tolist()


def network(noisy: torch.Tensor, timestep: int) -> torch.Tensor:
    """Stands for a network: any function of rows and timestep."""
    return (noisy * (1 + timestep / 1000)).sin() * 0.8 + 0.1 * noisy.roll(1, -1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("eta", "clip"), [(0.0, None), (0.7, 0.9), (1.0, None)])
def test_ddim_is_that_of_diffusers(prediction: Prediction, eta: float, clip: float | None) -> None:
    values, rows = betas(timesteps=100), torch.randn(5, 8)
    noises = [rows, *(torch.randn(5, 8) for _ in range(20))]
    other = scheduler("DDIMScheduler", prediction, values)
    other.register_to_config(clip_sample=clip is not None, clip_sample_range=clip or 1.0)
    other.set_timesteps(20)
    for noise, timestep in zip(noises[1:], other.timesteps.tolist(), strict=True):
        output = network(rows, timestep)
        rows = other.step(
            output, timestep, rows, eta=eta, use_clipped_model_output=True, variance_noise=noise
        ).prev_sample
    levels = noise_levels(values)

    def predict(noisy: torch.Tensor, timestep: int) -> torch.Tensor:
        one = levels[timestep].expand(len(noisy))
        estimate = denoised_rows(prediction, network(noisy, timestep), noisy, one)
        return estimate if clip is None else estimate.clamp(-clip, clip)

    sampled = sample_diffusion(predict, noises.__getitem__, levels, 20, eta=eta)
    torch.testing.assert_close(sampled, rows.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_is_that_of_diffusers(prediction: Prediction) -> None:
    values = betas(timesteps=50)
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in range(50)]
    rows = noises[0]
    other = scheduler("DDPMScheduler", prediction, values, variance_type="fixed_small")
    other.set_timesteps(50)
    generator = torch.Generator().manual_seed(0)
    torch.randn(5, 8, generator=generator, dtype=torch.float64)
    for timestep in other.timesteps.tolist():
        rows = other.step(network(rows, timestep), timestep, rows, generator=generator).prev_sample
    levels = noise_levels(values)

    def predict(noisy: torch.Tensor, timestep: int) -> torch.Tensor:
        return denoised_rows(prediction, network(noisy, timestep), noisy, levels[timestep].expand(len(noisy)))

    sampled = sample_diffusion(predict, noises.__getitem__, levels, 50, eta=1.0)
    torch.testing.assert_close(sampled, rows, rtol=1e-4, atol=1e-5)


MEAN, STD = 1.5, 0.4


def best_prediction(levels: torch.Tensor) -> Any:
    """Returns E[x0 | x] of rows from N(m, s^2): m + sqrt(a) s^2 (x - sqrt(a) m) / (a s^2 + 1 - a)."""

    def predict(noisy: torch.Tensor, timestep: int) -> torch.Tensor:
        level = levels[timestep].item()
        return MEAN + math.sqrt(level) * STD**2 * (noisy - math.sqrt(level) * MEAN) / (level * STD**2 + 1 - level)

    return predict


@pytest.mark.parametrize(
    ("schedule", "tolerance"), [("linear", 0.01), ("quadratic", 0.01), ("cosine", 0.01), ("sqrt", 0.08)]
)
def test_ddim_of_a_gaussian_reproduces_its_mean_and_variance(schedule: NoiseSchedule, tolerance: float) -> None:
    """Noise z becomes m + s (z - sqrt(a) m) / sqrt(a s^2 + 1 - a), with the level a of the last timestep, but for the
    length of the steps, which next to the data are long in the schedule sqrt."""
    levels = noise_levels(betas(schedule))
    noise = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    rows = sample_diffusion(best_prediction(levels), lambda number: noise, levels, 1000, eta=0.0)
    level = levels[-1].item()
    scale = STD / math.sqrt(level * STD**2 + 1 - level)
    assert rows.mean().item() == pytest.approx(MEAN - scale * math.sqrt(level) * MEAN, abs=1e-3)
    assert (rows[1] - rows[0]).item() / 2 == pytest.approx(scale, rel=tolerance)


def test_ddpm_of_a_gaussian_reproduces_its_mean_and_variance() -> None:
    levels = noise_levels(betas("cosine", 250))

    def noise(number: int) -> torch.Tensor:
        return torch.randn(40_000, 1, generator=torch.Generator().manual_seed(number), dtype=torch.float64)

    rows = sample_diffusion(best_prediction(levels), noise, levels, 250, eta=1.0)
    assert rows.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert rows.std().item() == pytest.approx(STD, rel=0.03)


def test_a_step_leaves_the_noise_that_its_level_has() -> None:
    """With the true row predicted, x of one level becomes x of the next, in mean and variance, for any eta."""
    rows, noise, fresh = (torch.randn(200_000, generator=torch.Generator().manual_seed(n)).double() for n in range(3))
    noisy = 0.3**0.5 * rows + 0.7**0.5 * noise
    for eta in (0.0, 0.5, 1.0):
        after = reverse_step(rows, noisy, 0.3, 0.6, eta, fresh)
        residual = after - 0.6**0.5 * rows
        assert residual.var().item() == pytest.approx(0.4, rel=0.01)
    assert torch.equal(reverse_step(rows, noisy, 0.3, 1.0, 1.0, fresh), rows)
