"""Steering: gradients against finite differences, sums, closed forms, bounds, and the paper's update."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlgen.controls.classifier import Classifier, Verdict
from ctrlgen.diffusion.denoiser import Denoised, Denoiser
from ctrlgen.diffusion.rounding import gaussian_word_logits
from ctrlgen.diffusion.schedule import alpha_sigma
from ctrlgen.errors import UsageError
from ctrlgen.generation.guidance import (
    Term,
    active,
    condition_words,
    joint_log_prob,
    log_complement,
    refine,
    steer,
    tweedie_shift,
    within,
)
from ctrlgen.settings import Guidance

MakeModel = Callable[..., Denoiser]
FAINT = Guidance(strength=1e-3)  # too weak for the bound on the shift to matter


class WordClasses(Classifier):
    """p(c | x_t) = prod_i sum_w p(w_i | x_t) p(c_i | w_i): the control sees each word alone."""

    kind, summary, syntax, example, oracle = "classes", "", "", "", ""

    def __init__(self, table: Tensor):
        self.table = table  # p(c | w), (C, V)

    @classmethod
    def load(cls, model: object, name: str) -> Classifier:
        raise AssertionError("made in the tests")

    def parse(self, value: str) -> Any:
        return value

    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        return torch.tensor(targets)

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        p = denoised.probs @ self.table.T  # (B, n, C)
        return p.gather(-1, encoded[..., None]).squeeze(-1).log().sum(-1)

    def word_log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        return self.table.log()[encoded]  # (B, n, V)

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        raise AssertionError("guidance never asks an oracle")


class WithoutClosedForm(WordClasses):
    def word_log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        return None  # type: ignore[return-value]


def some_term(seed: int, weight: float = 1.0, negated: bool = False, classes: int = 3) -> Term:
    rng = torch.Generator().manual_seed(seed)
    table = torch.rand(classes, 11, generator=rng, dtype=torch.float64).add(0.05)
    encoded = torch.randint(0, classes, (2, 3), generator=rng)
    return Term(WordClasses(table / table.sum(0)), encoded, weight, negated)


@pytest.fixture
def model(make_model: MakeModel) -> Denoiser:
    return make_model(perturbed=True).double()


def noisy(log_snr: float = -0.5) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    return torch.randn(2, 3, 4, generator=rng, dtype=torch.float64), torch.full((2,), log_snr, dtype=torch.float64)


def at(denoiser: Callable[..., Denoised], log_snr: Tensor, x0_before: Tensor | None = None) -> partial[Denoised]:
    """The denoiser at a noise level."""
    return partial(denoiser, log_snr=log_snr, self_condition=x0_before)


def tweedie_scale(log_snr: Tensor) -> Tensor:
    alpha, sigma = alpha_sigma(log_snr[0])
    return sigma**2 / alpha


@pytest.mark.parametrize(
    "terms",
    [
        [some_term(0)],
        [some_term(1, negated=True)],
        [some_term(2, weight=2.5), some_term(3, negated=True, weight=0.5), some_term(4)],
    ],
    ids=["one", "negated", "three"],
)
def test_the_shift_is_tweedies_with_the_gradient_of_finite_differences(model: Denoiser, terms: list[Term]) -> None:
    x_t, log_snr = noisy()
    x0_before = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    @torch.no_grad()
    def objective(x: Tensor) -> Tensor:
        return joint_log_prob(terms, model(x, log_snr, x0_before)).sum()

    step, expected = 1e-5, torch.empty_like(x_t)
    for index in range(x_t.numel()):
        nudge = torch.zeros_like(x_t).view(-1)
        nudge[index] = step
        nudge = nudge.view_as(x_t)
        expected.view(-1)[index] = (objective(x_t + nudge) - objective(x_t - nudge)) / (2 * step)
    _, shift = steer(at(model, log_snr, x0_before), x_t, terms, FAINT, model.embeddings())
    torch.testing.assert_close(shift / (FAINT.strength * tweedie_scale(log_snr)), expected, rtol=1e-6, atol=1e-8)


def test_the_gradient_through_the_skip_is_that_of_a_network_which_is_cut(model: Denoiser) -> None:
    embeddings, (x_t, log_snr), terms = model.embeddings().detach(), noisy(), [some_term(0), some_term(1, weight=2.0)]

    def skip(x: Tensor) -> Tensor:
        return gaussian_word_logits(x, embeddings, *alpha_sigma(log_snr))

    def cut(x: Tensor, *args: Tensor, **more: Tensor) -> Denoised:
        said = model(x.detach(), *args, **more)
        return dataclasses.replace(said, logits=said.logits.detach() + skip(x) - skip(x).detach())

    expected, expected_shift = steer(at(cut, log_snr), x_t, terms, FAINT, model.embeddings())
    denoised, shift = steer(at(model, log_snr), x_t, terms, FAINT, embeddings, through_network=False)
    torch.testing.assert_close(denoised.logits, expected.logits)
    torch.testing.assert_close(shift, expected_shift)
    assert not torch.equal(shift, steer(at(model, log_snr), x_t, terms, FAINT, model.embeddings())[1])


def test_controls_compose_as_a_sum_in_one_pass(model: Denoiser) -> None:
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    x_t, log_snr = noisy()
    terms = [some_term(0), some_term(1, negated=True), some_term(2, weight=3.0)]
    _, together = steer(at(model, log_snr), x_t, terms, FAINT, model.embeddings())
    assert len(calls) == 1
    singles = [steer(at(model, log_snr), x_t, [term], FAINT, model.embeddings())[1] for term in terms]
    torch.testing.assert_close(together, sum(singles))
    assert all(shift.abs().max() > 0 for shift in singles)


def test_a_weight_scales_the_gradient(model: Denoiser) -> None:
    x_t, log_snr = noisy()
    _, once = steer(at(model, log_snr), x_t, [some_term(0)], FAINT, model.embeddings())
    _, thrice = steer(at(model, log_snr), x_t, [some_term(0, weight=3.0)], FAINT, model.embeddings())
    torch.testing.assert_close(thrice, 3.0 * once)


def with_a_prior(make_model: MakeModel, prior: bool) -> Denoiser:
    """An untrained model is the exact posterior p(w | x_t) of words drawn evenly; its bias is their prior."""
    model = make_model().double()
    if prior:
        torch.nn.init.normal_(model.output.bias, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("prior", [False, True])
def test_exact_guidance_is_bayes_rule(make_model: MakeModel, prior: bool) -> None:
    """p(w | x_t, c) is proportional to p(w) N(x_t; alpha e_w, sigma^2) p(c_1 | w) p(c_2 | w)."""
    model = with_a_prior(make_model, prior)
    x_t, log_snr = noisy(log_snr=-1.0)
    terms = [some_term(0), some_term(7)]
    conditioned, shift = steer(at(model, log_snr), x_t, terms, Guidance("exact", strength=1.0), model.embeddings())
    alpha, sigma = alpha_sigma(log_snr[0])
    distances = (x_t[:, :, None] - alpha * model.embeddings()).square().sum(-1)  # (B, n, V)
    p = (model.output.bias - distances / (2 * sigma**2)).exp()
    for term in terms:
        p = p * term.classifier.table[term.encoded]  # type: ignore[attr-defined]
    torch.testing.assert_close(conditioned.probs, p / p.sum(-1, keepdim=True))
    assert torch.equal(shift, torch.zeros_like(x_t))


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("prior", [False, True])
def test_the_gradient_at_strength_1_gives_the_exact_conditional_mean(
    make_model: MakeModel, prior: bool, negated: bool
) -> None:
    """Tweedie's formula and Bayes' rule over the vocabulary are one and the same E[x_0 | x_t, c]."""
    model = with_a_prior(make_model, prior)
    x_t, log_snr = noisy(log_snr=-1.0)
    term = some_term(0, negated=negated)
    denoised, shift = steer(at(model, log_snr), x_t, [term], Guidance(strength=1.0), model.embeddings())
    assert shift.norm(dim=-1).max() < math.sqrt(4) - 1e-6, "the bound on the shift must not act in this test"
    assert shift.norm(dim=-1).min() > 1e-3
    conditioned, _ = steer(at(model, log_snr), x_t, [term], Guidance("exact", strength=1.0), model.embeddings())
    torch.testing.assert_close(denoised.x0_hat + shift, conditioned.probs @ model.embeddings())


def test_negation_is_log_of_1_minus_p(model: Denoiser) -> None:
    x_t, log_snr = noisy()
    denoised = model(x_t, log_snr)
    p = some_term(0).log_prob(denoised).exp()
    torch.testing.assert_close(some_term(0, negated=True).log_prob(denoised).exp(), 1 - p)


def test_negating_what_is_certain_stays_finite(model: Denoiser) -> None:
    certain = Term(WordClasses(torch.ones(1, 11, dtype=torch.float64)), torch.zeros(2, 3, dtype=torch.long), 1.0, True)
    x_t, log_snr = noisy()
    assert torch.isfinite(certain.log_prob(model(x_t, log_snr))).all()
    _, shift = steer(at(model, log_snr), x_t, [certain], Guidance(), model.embeddings())
    assert torch.isfinite(shift).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_complement_is_finite_in_every_precision(dtype: torch.dtype) -> None:
    """bfloat16 has no number between 0.996 and 1."""
    p = torch.tensor([0.0, 1e-30, 0.3, 0.9985, 0.999, 1.0])
    log_p = p.log().to(dtype).requires_grad_()
    log_not = log_complement(log_p)
    assert log_not.dtype == torch.float32
    assert torch.isfinite(log_not).all()
    torch.testing.assert_close(log_not[:-1].exp(), 1 - p[:-1], rtol=2e-3, atol=1e-4)
    (gradient,) = torch.autograd.grad(log_not.sum(), log_p)
    assert torch.isfinite(gradient).all()
    assert (gradient[2:5] < 0).all()


def test_what_the_length_rules_out_is_avoided_already(model: Denoiser) -> None:
    x_t, log_snr = noisy()
    term = dataclasses.replace(some_term(0, negated=True), impossible=torch.tensor([True, False]))
    log_p = term.log_prob(model(x_t, log_snr))
    assert log_p[0] == 0
    assert log_p[1] == some_term(0, negated=True).log_prob(model(x_t, log_snr))[1] < 0
    denoised, shift = steer(at(model, log_snr), x_t, [term], Guidance(), model.embeddings())
    assert not shift[0].any()
    assert shift[1].any()
    chosen = condition_words(denoised, [term])
    assert torch.equal(chosen.logits[0], denoised.logits[0])
    assert not torch.equal(chosen.logits[1], denoised.logits[1])


def test_exact_multiplies_controls_to_the_power_of_their_weights(model: Denoiser) -> None:
    x_t, log_snr = noisy()
    denoised = model(x_t, log_snr)
    terms = [some_term(0, weight=0.5), some_term(1)]
    product = denoised.probs
    for term in terms:
        product = product * term.classifier.table[term.encoded] ** (2.0 * term.weight)  # type: ignore[attr-defined]
    expected = product / product.sum(-1, keepdim=True)
    torch.testing.assert_close(condition_words(denoised, terms, 2.0).probs, expected)


def test_exact_without_a_closed_form_says_so(model: Denoiser) -> None:
    term = Term(WithoutClosedForm(torch.ones(1, 11)), torch.zeros(2, 3, dtype=torch.long))
    x_t, log_snr = noisy()
    with pytest.raises(UsageError, match="classes: has no closed form; use --guidance gradient"):
        steer(at(model, log_snr), x_t, [term], Guidance("exact"), model.embeddings())


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 3.0])
def test_a_text_is_shifted_by_two_embeddings_a_word_at_most(log_snr: float) -> None:
    gradient = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient[0] *= 100.0
    gradient[0, 3:] = 0.0  # filled up, or kept: these words do not count
    gradient[1] *= 1e-9
    gradient[2] = 0.0
    log_snr_t = torch.tensor(log_snr, dtype=torch.float64)
    shift = tweedie_shift(gradient, log_snr_t, 3.0)
    alpha, sigma = alpha_sigma(log_snr_t)
    full = 3.0 * sigma**2 / alpha * gradient
    torch.testing.assert_close(shift[1:], full[1:])
    assert float(full[0, :3].norm(dim=-1).square().mean().sqrt()) > 4.0  # 2 sqrt(d)
    assert float(shift[0, :3].norm(dim=-1).square().mean().sqrt()) == pytest.approx(4.0)
    torch.testing.assert_close(shift[0] / shift[0, 0, 0], full[0] / full[0, 0, 0])  # its words keep their proportions


def test_without_terms_the_denoiser_speaks_alone(model: Denoiser) -> None:
    x_t, log_snr = noisy()
    alone = model(x_t, log_snr)
    for guidance in (Guidance(), Guidance("exact"), Guidance("paper")):
        denoised, shift = steer(at(model, log_snr), x_t, [], guidance, model.embeddings())
        assert torch.equal(denoised.logits, alone.logits)
        assert torch.equal(denoised.x0_hat, alone.x0_hat)
        assert torch.equal(shift, torch.zeros_like(x_t))


def test_what_steer_returns_holds_no_graph(model: Denoiser) -> None:
    x_t, log_snr = noisy()
    denoised, shift = steer(at(model, log_snr), x_t, [some_term(0)], Guidance(), model.embeddings())
    tensors = [denoised.x_t, denoised.logits, denoised.x0_hat, *denoised.hidden, shift]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_strength_0_is_unguided() -> None:
    assert active([some_term(0)], Guidance(strength=0.0), 0.5) == []


def test_weight_0_is_unguided() -> None:
    kept = some_term(1)
    assert active([some_term(0, weight=0.0), kept], Guidance(), 0.5) == [kept]


def test_windows_bound_the_part_of_denoising_in_which_a_control_acts() -> None:
    early = Term(some_term(0).classifier, some_term(0).encoded, window=(0.0, 0.4))
    late = Term(some_term(1).classifier, some_term(1).encoded, window=(0.4, 1.0))
    whole = Guidance()
    assert active([early, late], whole, 0.0) == [early]
    assert active([early, late], whole, 0.4) == [early, late]
    assert active([early, late], whole, 1.0) == [late]
    assert active([early, late], Guidance(window=(0.2, 0.8)), 0.1) == []
    assert active([early, late], Guidance(window=(0.2, 0.8)), 0.3) == [early]
    assert [within((0.25, 0.75), p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [False, True, True, True, False]


def refined(model: Denoiser, guidance: Guidance, terms: list[Term]) -> tuple[Tensor, Tensor, Callable[[Tensor], float]]:
    """x_s before and after `refine`, and the paper's objective."""
    mean, log_snr = noisy(0.5)
    variance = torch.tensor(0.3, dtype=torch.float64)
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    x_s = mean + variance.sqrt() * eps
    moved = refine(model, x_s.clone(), mean, variance, log_snr, None, terms, guidance)

    @torch.no_grad()
    def objective(x: Tensor) -> float:
        fluency = -((x - mean) ** 2).sum() / (2 * variance)
        return float(guidance.paper_fluency * fluency + joint_log_prob(terms, model(x, log_snr)).sum())

    return x_s, moved, objective


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_papers_refinement_increases_its_objective(model: Denoiser, steps: int) -> None:
    guidance = Guidance("paper", strength=1.0, paper_steps=steps, paper_lr=0.01)
    x_s, moved, objective = refined(model, guidance, [some_term(0), some_term(1, negated=True)])
    assert objective(moved) > objective(x_s)


def test_adagrads_first_step_is_the_gradients_sign_times_the_rate(model: Denoiser) -> None:
    guidance = Guidance("paper", strength=2.0, paper_steps=1, paper_lr=0.05)
    x_s, moved, objective = refined(model, guidance, [some_term(0)])
    torch.testing.assert_close((moved - x_s).abs(), torch.full_like(x_s, 0.1))
    index = (1, 2, 3)
    nudge = torch.zeros_like(x_s)
    nudge[index] = 1e-5
    slope = objective(x_s + nudge) - objective(x_s - nudge)
    assert math.copysign(1.0, slope) == math.copysign(1.0, float((moved - x_s)[index]))


def test_a_strong_fluency_term_pulls_towards_the_mean(model: Denoiser) -> None:
    guidance = Guidance("paper", strength=1.0, paper_steps=20, paper_lr=0.05, paper_fluency=100.0)
    mean, _ = noisy(0.5)
    x_s, moved, _ = refined(model, guidance, [some_term(0)])
    assert (moved - mean).norm() < 0.6 * (x_s - mean).norm()


def test_the_paper_method_leaves_the_prediction_alone(model: Denoiser) -> None:
    x_t, log_snr = noisy()
    denoised, shift = steer(at(model, log_snr), x_t, [some_term(0)], Guidance("paper"), model.embeddings())
    assert torch.equal(denoised.x0_hat, model(x_t, log_snr).x0_hat)
    assert torch.equal(shift, torch.zeros_like(x_t))
