"""Preference losses: against numbers worked out apart from them, against TRL, and what must always hold."""

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.loss.preference import (
    LOSS_TYPES,
    FDivergence,
    PairLogProbs,
    PreferenceLoss,
    pair_log_probs,
    preference_losses,
    preference_metrics,
)

WITH_REFERENCE: list[PreferenceLoss] = [name for name, kind in LOSS_TYPES.items() if kind.needs_reference]
OF_DIFFERENCE: list[PreferenceLoss] = [
    "sigmoid",
    "sigmoid_norm",
    "ipo",
    "hinge",
    "robust",
    "exo_pair",
    "discopop",
    "simpo",
    "cpo",
]
"""Functions of the difference of the two scores."""


DIVERGENCES: list[FDivergence] = ["forward_kl", "js_divergence", "alpha_divergence"]


def smoothing(loss_type: PreferenceLoss) -> float:
    return {"robust": 0.1, "exo_pair": 1e-3}.get(loss_type, 0.0)


def one(chosen: float, rejected: float, chosen_length: int = 1, rejected_length: int = 1) -> PairLogProbs:
    sums = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected)]
    return PairLogProbs(*sums, torch.tensor([chosen_length]), torch.tensor([rejected_length]))


def loss(policy: PairLogProbs, reference: PairLogProbs | None, **options: Any) -> float:
    return preference_losses(policy, reference, **options).item()


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


POLICY, REFERENCE = one(-10, -15, 5, 3), one(-12, -14, 5, 3)
# h = (-10 + 15) - (-12 + 14) = 3; per token: (-2 + 5) - (-2.4 + 14/3) = 3 - 2.2666.. = 0.7333..


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, math.log1p(math.exp(-0.3))),
        ({"beta": 0.5}, math.log1p(math.exp(-1.5))),
        ({"label_smoothing": 0.2}, 0.8 * math.log1p(math.exp(-0.3)) + 0.2 * math.log1p(math.exp(0.3))),
        ({"loss_type": "hinge"}, 0.7),
        ({"loss_type": "hinge", "beta": 0.5}, 0.0),
        ({"loss_type": "ipo"}, (2.2 / 3 - 5) ** 2),
        ({"loss_type": "simpo", "beta": 2.0, "gamma": 0.5}, math.log1p(math.exp(-5.5))),
        ({"loss_type": "sigmoid_norm"}, math.log1p(math.exp(-0.22 / 3))),
        (
            {"loss_type": "robust", "label_smoothing": 0.1},
            (0.9 * math.log1p(math.exp(-0.3)) - 0.1 * math.log1p(math.exp(0.3))) / 0.8,
        ),
        (
            {"loss_type": "exo_pair", "label_smoothing": 0.01},
            s(0.3) * math.log(s(0.3) / 0.99) + s(-0.3) * math.log(s(-0.3) / 0.01),
        ),
        ({"loss_type": "nca_pair"}, -math.log(s(0.2)) - 0.5 * math.log(s(-0.2)) - 0.5 * math.log(s(0.1))),
        ({"loss_type": "bco_pair"}, -math.log(s(0.2)) - math.log(s(0.1))),
        ({"loss_type": "sppo_hard"}, (2 - 5) ** 2 + (-1 + 5) ** 2),
        ({"loss_type": "apo_zero"}, 1 - s(0.2) + s(-0.1)),
        ({"loss_type": "apo_down"}, s(0.2) + 1 - s(0.3)),
        ({"loss_type": "discopop"}, -(1 - s(6)) * math.log(s(0.3)) + s(6) * math.exp(-0.3)),
        ({"loss_type": "cpo"}, -math.log(s(0.5))),
        ({"f_divergence_type": "forward_kl"}, -math.log(s(0.1 * (math.e - math.exp(-2))))),
        ({"f_divergence_type": "js_divergence"}, -math.log(s(0.1 * math.log((1 + math.e) / (1 + math.exp(-2)))))),
        (
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.25},
            -math.log(s(0.1 * (math.exp(0.75) - math.exp(-1.5)) / 0.75)),
        ),
        ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0}, math.log1p(math.exp(-0.3))),
        (
            {"loss_type": "ipo", "f_divergence_type": "forward_kl"},
            ((1 - math.exp(-2)) / 5 - (1 - math.e) / 3 - 5) ** 2,
        ),
        # the odds of exp(-2) over those of exp(-5)
        ({"loss_type": "orpo"}, -0.1 * math.log(s(math.log((math.e**5 - 1) / (math.e**2 - 1))))),
    ],
)
def test_worked_out(options: dict[str, Any], expected: float) -> None:
    assert loss(POLICY, REFERENCE, **options) == pytest.approx(expected, abs=1e-12)


def test_some_losses_need_a_reference_and_the_others_ignore_it() -> None:
    for loss_type, kind in LOSS_TYPES.items():
        if kind.needs_reference:
            with pytest.raises(ValueError, match=f"the {loss_type} loss compares"):
                loss(POLICY, None, loss_type=loss_type)
        else:
            assert loss(POLICY, None, loss_type=loss_type) == loss(POLICY, REFERENCE, loss_type=loss_type)


def test_a_divergence_has_losses_of_the_difference_only() -> None:
    for loss_type, kind in LOSS_TYPES.items():
        assert kind.any_divergence == (loss_type in OF_DIFFERENCE and kind.needs_reference)
        if not kind.any_divergence:
            with pytest.raises(ValueError, match=f"the {loss_type} loss has no form with the divergence forward_kl"):
                loss(POLICY, REFERENCE, loss_type=loss_type, f_divergence_type="forward_kl")


GENERATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "reverse_kl": lambda t: t * t.log(),
    "forward_kl": lambda t: -t.log(),
    "js_divergence": lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(),
    # with the alpha of the paper, 0.7
    "alpha_divergence": lambda t: (t**0.3 - 0.3 * t - 0.7) / (0.7 * -0.3),
}
"""The convex functions of table 1 of the paper."""


@pytest.mark.parametrize("divergence", GENERATORS)
def test_the_scores_are_slopes_of_the_divergence(divergence: FDivergence) -> None:
    """hinge with a small beta is linear in the difference of the scores, whose constants cancel."""
    ratios = torch.tensor([0.01, 0.2, 1.0, 3.0, 50.0], dtype=torch.float64).requires_grad_()
    (slopes,) = torch.autograd.grad(GENERATORS[divergence](ratios).sum(), ratios)
    for number, log_ratio in enumerate(ratios.log().tolist()):
        options: dict[str, Any] = {"f_divergence_type": divergence, "f_alpha_divergence_coef": 0.3}
        value = loss(one(log_ratio, 0.0), one(0.0, 0.0), loss_type="hinge", beta=1e-3, **options)
        assert (1 - value) / 1e-3 == pytest.approx((slopes[number] - slopes[2]).item(), rel=1e-9, abs=1e-9)


def test_a_completion_that_is_certain_has_a_finite_orpo_loss_and_gradient() -> None:
    chosen = torch.zeros(1, requires_grad=True)
    length = torch.ones(1, dtype=torch.int64)
    value = preference_losses(PairLogProbs(chosen, torch.tensor([-1e-9]), length, length), None, loss_type="orpo")
    value.sum().backward()
    assert value.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_metrics_are_worked_out() -> None:
    metrics = {name: value.item() for name, value in preference_metrics(POLICY, REFERENCE, 0.1).items()}
    expected = {"accuracy": 1, "margin": 0.3, "rewards/chosen": 0.2, "rewards/rejected": -0.1}
    assert metrics == pytest.approx(expected | {"logps/chosen": -10, "logps/rejected": -15})


def test_completions_are_summed_by_their_lengths() -> None:
    sums = pair_log_probs(torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0]), torch.tensor([2, 1, 0, 3]))
    assert sums.chosen.tolist() == [-3, -4]
    assert sums.rejected.tolist() == [0, -56]
    assert sums.chosen_length.tolist() == [2, 1]
    assert sums.rejected_length.tolist() == [0, 3]


def test_tokens_beyond_the_shorter_completion_of_a_pair_have_a_weight() -> None:
    tokens = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0, -64.0], requires_grad=True)
    lengths = torch.tensor([3, 1, 0, 1, 2, 0])
    sums = pair_log_probs(tokens, lengths, ld_alpha=0.25)
    assert sums.chosen.tolist() == [-1 - 0.25 * (2 + 4), -8, 0]
    assert sums.rejected.tolist() == [-16, -32 - 0.25 * 64, 0]
    assert sums.chosen_length.tolist() == [3, 1, 0]
    (sums.chosen.sum() + sums.rejected.sum()).backward()
    assert tokens.grad is not None
    assert tokens.grad.tolist() == [1, 0.25, 0.25, 1, 1, 1, 0.25]


logp = st.floats(-200, 0)
length = st.integers(1, 60)
completion_pair = st.builds(one, logp, logp, length, length)


@given(completion_pair, completion_pair, st.sampled_from(WITH_REFERENCE), st.floats(0.01, 3), st.floats(-50, 50))
def test_only_what_the_reference_does_not_explain_counts(
    policy: PairLogProbs, reference: PairLogProbs, loss_type: PreferenceLoss, beta: float, shift: float
) -> None:
    """A change of policy and reference alike changes nothing: the loss is a function of the log-ratios."""
    moved = [
        PairLogProbs(a.chosen + shift, a.rejected - shift, policy.chosen_length, policy.rejected_length)
        for a in (policy, reference)
    ]
    plain = PairLogProbs(reference.chosen, reference.rejected, policy.chosen_length, policy.rejected_length)
    options: dict[str, Any] = {"loss_type": loss_type, "beta": beta, "label_smoothing": smoothing(loss_type)}
    assert loss(*moved, **options) == pytest.approx(loss(policy, plain, **options), rel=1e-6, abs=1e-6)


@given(completion_pair, completion_pair, st.sampled_from(OF_DIFFERENCE), st.floats(0.01, 3))
def test_the_gradient_asks_for_more_of_the_preferred(
    policy: PairLogProbs, reference: PairLogProbs, loss_type: PreferenceLoss, beta: float
) -> None:
    chosen, rejected = policy.chosen.clone().requires_grad_(), policy.rejected.clone().requires_grad_()
    trained = PairLogProbs(chosen, rejected, policy.chosen_length, policy.rejected_length)
    options: dict[str, Any] = {"loss_type": loss_type, "beta": beta, "label_smoothing": smoothing(loss_type)}
    preference_losses(trained, reference, **options).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    if loss_type not in ("ipo", "exo_pair", "discopop"):  # for which a gap can be large enough
        assert chosen.grad.item() <= 0 <= rejected.grad.item()
    ratio = policy.chosen_length.double() / policy.rejected_length if LOSS_TYPES[loss_type].per_token else 1
    assert (chosen.grad * ratio).item() == pytest.approx(-rejected.grad.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_no_gap_is_so_wide_that_the_loss_is_no_number(loss_type: PreferenceLoss) -> None:
    sums = torch.cartesian_prod(*[torch.tensor([0, -1e-6, -1, -50, -1e3, -1e5])] * 4)
    lengths = torch.full((len(sums),), 3)
    chosen, rejected = (column.clone().requires_grad_() for column in sums.T[:2])
    policy, reference = (PairLogProbs(*pair, lengths, lengths) for pair in ((chosen, rejected), sums.T[2:]))
    divergences = DIVERGENCES if LOSS_TYPES[loss_type].any_divergence else []
    for beta, divergence in itertools.product((0.01, 3.0), ("reverse_kl", *divergences)):
        options: dict[str, Any] = {"loss_type": loss_type, "beta": beta, "label_smoothing": smoothing(loss_type)}
        losses = preference_losses(policy, reference, f_divergence_type=divergence, **options)
        gradients = torch.autograd.grad(losses.sum(), (chosen, rejected))
        assert all(one.isfinite().all() for one in (losses, *gradients))


@given(completion_pair, completion_pair, st.floats(0.01, 3))
def test_half_smoothed_sigmoid_does_not_know_which_is_which(
    policy: PairLogProbs, reference: PairLogProbs, beta: float
) -> None:
    def swapped(a: PairLogProbs) -> PairLogProbs:
        return PairLogProbs(a.rejected, a.chosen, a.rejected_length, a.chosen_length)

    loss_of_pair = loss(policy, reference, beta=beta, label_smoothing=0.5)
    assert loss(swapped(policy), swapped(reference), beta=beta, label_smoothing=0.5) == pytest.approx(loss_of_pair)


@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
@pytest.mark.parametrize("loss_type", WITH_REFERENCE)
def test_equals_trl(loss_type: PreferenceLoss, sft_weight: float) -> None:
    require_trls({loss_type: 1.0}, sft_weight)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("loss_type", [one for one, kind in LOSS_TYPES.items() if kind.any_divergence])
def test_divergences_equal_trls(loss_type: PreferenceLoss, divergence: FDivergence) -> None:
    require_trls({loss_type: 1.0}, 0.0, f_divergence_type=divergence, f_alpha_divergence_coef=0.3)


@pytest.mark.parametrize("ld_alpha", [1.0, 0.4, 0.0])
@pytest.mark.parametrize(
    "weights", [{"sigmoid": 0.8, "bco_pair": 0.2}, {"ipo": 0.5, "hinge": 2.0, "apo_zero": 1.0}, {"sigmoid_norm": 3.0}]
)
def test_sums_and_weights_of_tokens_equal_trls(weights: dict[PreferenceLoss, float], ld_alpha: float) -> None:
    require_trls(weights, 1.0, ld_alpha=ld_alpha)


def require_trls(
    weights: dict[PreferenceLoss, float], sft_weight: float, *, ld_alpha: float = 1.0, **divergence: Any
) -> None:
    """Compares with TRL's own loss method, on padded rows of its own collator and log-probabilities of its own making.

    These are close to those of the reference where there is a divergence, whose scores grow exponentially.
    """
    trl = pytest.importorskip("trl.trainer.dpo_trainer")
    generator = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(1, 50, (n,), generator=generator).tolist()  # noqa: E731
    rows = [{"prompt_ids": draw(p), "chosen_ids": draw(c), "rejected_ids": draw(r)} for p, c, r in
            [(3, 4, 9), (1, 1, 2), (6, 12, 5)]]  # fmt: skip
    batch = trl.DataCollatorForPreference(pad_token_id=0)(rows)
    target = batch["completion_mask"][:, 1:].bool()
    # TRL's alpha_divergence has no float64
    dtype = torch.float32 if divergence else torch.float64
    tables = [(0.2 if divergence else 1) * torch.randn(50, 50, generator=generator, dtype=dtype) for _ in range(2)]

    class Bigram(torch.nn.Module):
        def __init__(self, table: torch.Tensor) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(table)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            log_probs = self.table.log_softmax(-1)[input_ids[:, :-1], input_ids[:, 1:]] * target
            return SimpleNamespace(log_probs=log_probs, mean_logits=log_probs, is_top1=target, entropy=log_probs)

    policy, reference = (Bigram(table) for table in tables)
    theirs = _trl_loss(trl, policy, reference, batch, weights, sft_weight, ld_alpha=ld_alpha, **divergence)
    theirs.backward()
    gradient, policy.table.grad = policy.table.grad, None

    lengths = target.sum(1)
    tokens, of_reference = (model(batch["input_ids"]).log_probs[target] for model in (policy, reference))
    ours, base = (pair_log_probs(one, lengths, ld_alpha=ld_alpha) for one in (tokens, of_reference))
    mean = -sft_weight * tokens[: lengths.chunk(2)[0].sum()].mean()
    for loss_type, weight in weights.items():
        options: dict[str, Any] = {"label_smoothing": smoothing(loss_type), **divergence}
        mean = mean + weight * preference_losses(ours, base, loss_type=loss_type, beta=0.1, **options).mean()
    mean.backward()
    assert mean.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    torch.testing.assert_close(policy.table.grad, gradient, rtol=1e-5, atol=1e-5)


def _trl_loss(
    trl: Any, policy: Any, reference: Any, batch: Any, weights: dict[PreferenceLoss, float], sft: float, **keys: Any
) -> Any:
    """``DPOTrainer._compute_loss`` on a trainer that has only what the method reads."""
    from collections import defaultdict

    same = lambda value: value  # noqa: E731
    added = {**weights, **({"sft": sft} if sft else {})}
    stand_in = SimpleNamespace(
        model=policy, ref_model=reference, aux_loss_enabled=False, precompute_ref_logps=False, beta=0.1, _tp_size=1,
        label_smoothing=sum(map(smoothing, weights)), use_weighting=False,
        loss_types=[*added], loss_weights=[*added.values()], **{"f_divergence_type": "reverse_kl", **keys},
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05), _total_train_tokens=0,
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl, "disable_gradient_checkpointing", lambda *_: __import__("contextlib").nullcontext())
        patch.setattr(trl, "is_peft_model", lambda _: False)
        return trl.DPOTrainer._compute_loss(stand_in, policy, batch, False)


@pytest.mark.parametrize("loss_type", ["orpo", "cpo", "simpo"])
def test_equals_trl_without_a_reference(loss_type: PreferenceLoss) -> None:
    """TRL's own formulas, on means per token for orpo and simpo."""
    orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    generator = torch.Generator().manual_seed(3)
    sums = [(-9 * torch.rand(20, generator=generator)).requires_grad_() for _ in range(2)]
    lengths = [torch.randint(1, 9, (20,), generator=generator) for _ in range(2)]
    means = [total / length for total, length in zip(sums, lengths, strict=True)]
    stand_in = SimpleNamespace(
        beta=0.4, alpha=0.0, simpo_gamma=0.5, label_smoothing=0.0, accelerator=SimpleNamespace(device="cpu"),
        loss_type="simpo" if loss_type == "simpo" else "sigmoid",
    )  # fmt: skip
    if loss_type == "orpo":
        theirs = -orpo.ORPOTrainer.odds_ratio_loss(stand_in, *means)[0].mean()
    else:
        theirs = cpo.CPOTrainer.cpo_loss(stand_in, *(means if loss_type == "simpo" else sums))[0].mean()
    expected = torch.autograd.grad(theirs, sums)
    ours = preference_losses(PairLogProbs(*sums, *lengths), None, loss_type=loss_type, beta=0.4, gamma=0.5).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    for gradient, other in zip(torch.autograd.grad(ours, sums), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)
