"""Preference losses: against numbers worked out apart from them, against TRL, and what must always hold."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.loss.preference import (
    LOSS_TYPES,
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
    for beta in (0.01, 3.0):
        options: dict[str, Any] = {"loss_type": loss_type, "beta": beta, "label_smoothing": smoothing(loss_type)}
        losses = preference_losses(policy, reference, **options)
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
    """TRL's own loss method, on padded rows of its own collator and log-probabilities of its own making."""
    trl = pytest.importorskip("trl.trainer.dpo_trainer")
    generator = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(1, 50, (n,), generator=generator).tolist()  # noqa: E731
    rows = [{"prompt_ids": draw(p), "chosen_ids": draw(c), "rejected_ids": draw(r)} for p, c, r in
            [(3, 4, 9), (1, 1, 2), (6, 12, 5)]]  # fmt: skip
    batch = trl.DataCollatorForPreference(pad_token_id=0)(rows)
    target = batch["completion_mask"][:, 1:].bool()
    tables = [torch.randn(50, 50, generator=generator, dtype=torch.float64) for _ in range(2)]

    class Bigram(torch.nn.Module):
        def __init__(self, table: torch.Tensor) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(table)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            log_probs = self.table.log_softmax(-1)[input_ids[:, :-1], input_ids[:, 1:]] * target
            return SimpleNamespace(log_probs=log_probs, mean_logits=log_probs, is_top1=target, entropy=log_probs)

    policy, reference = (Bigram(table) for table in tables)
    theirs = _trl_loss(trl, policy, reference, batch, loss_type, sft_weight)
    theirs.backward()
    gradient, policy.table.grad = policy.table.grad, None

    lengths = target.sum(1)
    ours, base = (pair_log_probs(m(batch["input_ids"]).log_probs[target], lengths) for m in (policy, reference))
    mean = preference_losses(ours, base, loss_type=loss_type, beta=0.1, label_smoothing=smoothing(loss_type)).mean()
    mean = mean - sft_weight * ours.chosen.sum() / ours.chosen_length.sum()
    mean.backward()
    assert mean.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    torch.testing.assert_close(policy.table.grad, gradient, rtol=1e-5, atol=1e-5)


def _trl_loss(trl: Any, policy: Any, reference: Any, batch: Any, loss_type: PreferenceLoss, sft_weight: float) -> Any:
    """``DPOTrainer._compute_loss`` on a trainer that has only what the method reads."""
    from collections import defaultdict

    same = lambda value: value  # noqa: E731
    stand_in = SimpleNamespace(
        model=policy, ref_model=reference, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=False,
        f_divergence_type="reverse_kl", beta=0.1, label_smoothing=smoothing(loss_type), use_weighting=False, _tp_size=1,
        loss_types=[loss_type, "sft"] if sft_weight else [loss_type],
        loss_weights=[1.0, sft_weight] if sft_weight else [1.0],
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
