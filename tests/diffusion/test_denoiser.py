"""The denoiser: closed forms at initialisation, and what its inputs change once its weights are not zero."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from ctrlgen.diffusion.blocks import rotary, rotate
from ctrlgen.diffusion.denoiser import Denoised, Denoiser, DenoiserConfig
from ctrlgen.diffusion.losses import bound_by_word
from ctrlgen.diffusion.schedule import WarpSchedule, alpha_sigma

MakeModel = Callable[..., Denoiser]


def inputs(batch: int = 2, length: int = 6, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(batch, length, 4, generator=rng, dtype=dtype), torch.linspace(-3.0, 2.0, batch, dtype=dtype)


def test_embeddings_have_norm_sqrt_d(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    with torch.no_grad():
        model.word_embedding.mul_(torch.linspace(0.1, 9.0, 11)[:, None])
    norms = model.embeddings().norm(dim=-1)
    torch.testing.assert_close(norms, torch.full((11,), math.sqrt(4)))
    directions = model.word_embedding / model.word_embedding.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(model.embeddings() / 2.0, directions)


def test_embeddings_are_free_under_mse(make_model: MakeModel) -> None:
    model = make_model(objective="mse")
    assert torch.equal(model.embeddings(), model.word_embedding)


def test_embed_looks_words_up(make_model: MakeModel) -> None:
    model = make_model()
    tokens = torch.tensor([[3, 0, 10], [7, 7, 1]])
    x_0 = model.embed(tokens)
    assert x_0.shape == (2, 3, 4)
    assert torch.equal(x_0[1, 1], model.embeddings()[7])


@pytest.mark.usefixtures("four_threads")
def test_the_gradient_of_a_large_batch_is_the_same_every_time(make_model: MakeModel) -> None:
    model = make_model()
    tokens, weight = torch.randint(0, 11, (1024, 32)), torch.randn(1024, 32, 4)

    def gradient() -> Tensor:
        return torch.autograd.grad((model.embed(tokens) * weight).sum(), model.word_embedding)[0]

    assert all(torch.equal(gradient(), gradient()) for _ in range(20))


def test_an_untrained_model_is_the_gaussian_posterior(make_model: MakeModel) -> None:
    model = make_model().double()
    x_t, log_snr = inputs(dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr)
    mean = alpha[:, None, None, None] * model.embeddings()  # (B, 1, V, d)
    likelihood = torch.distributions.Normal(mean, sigma[:, None, None, None]).log_prob(x_t[:, :, None]).sum(-1)
    denoised = model(x_t, log_snr)
    torch.testing.assert_close(denoised.probs, likelihood.softmax(-1))
    torch.testing.assert_close(denoised.x0_hat, likelihood.softmax(-1) @ model.embeddings())


def test_an_untrained_mse_model_predicts_nothing(make_model: MakeModel) -> None:
    denoised = make_model(objective="mse")(*inputs())
    assert torch.equal(denoised.x0_hat, torch.zeros(2, 6, 4))


@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_shapes(make_model: MakeModel, objective: str) -> None:
    model = make_model(perturbed=True, objective=objective)
    x_t, log_snr = inputs(3, 5)
    denoised = model(x_t, log_snr)
    assert denoised.logits.shape == denoised.probs.shape == (3, 5, 11)
    assert denoised.x0_hat.shape == (3, 5, 4)
    assert [h.shape for h in denoised.hidden] == [(3, 5, 16)] * 2
    assert denoised.x_t is x_t
    assert denoised.log_snr is log_snr


def test_ce_predicts_the_mean_embedding(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    denoised = model(*inputs())
    torch.testing.assert_close(denoised.probs.sum(-1), torch.ones(2, 6))
    torch.testing.assert_close(denoised.x0_hat, denoised.probs @ model.embeddings())


def test_mse_rounds_to_the_nearest_embedding(make_model: MakeModel) -> None:
    model = make_model(perturbed=True, objective="mse")
    denoised = model(*inputs())
    distance = torch.cdist(denoised.x0_hat, model.word_embedding.expand(2, -1, -1))
    assert torch.equal(denoised.logits.argmax(-1), distance.argmin(-1))


def test_clean_flag_has_an_effect(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    x_t, log_snr = inputs()
    none = torch.zeros(2, 6, dtype=torch.bool)
    one = none.clone()
    one[0, 2] = True
    plain = model(x_t, log_snr).logits
    torch.testing.assert_close(model(x_t, log_snr, clean=none).logits, plain)
    flagged = model(x_t, log_snr, clean=one).logits
    assert not torch.allclose(flagged[0], plain[0])
    torch.testing.assert_close(flagged[1], plain[1])  # rows do not see each other


def test_self_condition_has_an_effect(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    x_t, log_snr = inputs()
    plain = model(x_t, log_snr).logits
    torch.testing.assert_close(model(x_t, log_snr, torch.zeros_like(x_t)).logits, plain)
    assert not torch.allclose(model(x_t, log_snr, torch.ones_like(x_t)).logits, plain)


def test_time_has_an_effect_beyond_the_skip(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    x_t, log_snr = inputs()
    now, later = model(x_t, log_snr), model(x_t, log_snr + 1.0)
    assert not torch.allclose(now.hidden[-1], later.hidden[-1])


def test_every_position_sees_every_other(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    x_t, log_snr = inputs(1, 6)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, log_snr).logits.sum(-1)[0], x_t)
    assert (jacobian[:, 0].abs().sum(-1) > 0).all()  # (n, n) positions


@pytest.mark.parametrize("length", [1, 5, 12])
def test_positions_are_counted_from_both_ends(make_model: MakeModel, length: int) -> None:
    model = make_model()  # its blocks add nothing yet
    x_t, log_snr = inputs(1, length)
    first, last = model.from_start.weight[:length], model.from_end.weight[:length].flip(0)
    expected = model.input(torch.cat([x_t, torch.zeros_like(x_t)], -1)) + first + last
    torch.testing.assert_close(model(x_t, log_snr).hidden[-1], expected)


def test_rotation_tells_attention_the_distance_alone(rng: torch.Generator) -> None:
    q, k = torch.randn(8, dtype=torch.float64, generator=rng), torch.randn(8, dtype=torch.float64, generator=rng)
    rotation = rotary(10, 8, torch.zeros((), dtype=torch.float64))
    products = rotate(q.expand(10, 8), rotation) @ rotate(k.expand(10, 8), rotation).T  # (n, n)
    for distance in range(-9, 10):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0.0, atol=1e-5)
    assert products[0].unique().numel() == 10
    torch.testing.assert_close(products[0, 0], q @ k)


def test_attention_reads_the_order_of_words(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    with torch.no_grad():
        model.from_start.weight.zero_()
        model.from_end.weight.zero_()
    x_t, log_snr = inputs(1, 6)
    assert not torch.allclose(model(x_t.flip(1), log_snr).logits.flip(1), model(x_t, log_snr).logits)


def test_rows_do_not_depend_on_the_batch(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    x_t, log_snr = inputs(3)
    together = model(x_t, log_snr).logits
    for row in range(3):
        alone = model(x_t[row : row + 1], log_snr[row : row + 1]).logits[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["ce", "mse"])
@pytest.mark.parametrize("read", [lambda d: d.logits, lambda d: d.x0_hat, lambda d: d.hidden[0]])
def test_gradient_to_x_t_is_that_of_finite_differences(
    make_model: MakeModel, objective: str, read: Callable[[Denoised], torch.Tensor]
) -> None:
    model = make_model(perturbed=True, objective=objective).double()
    x_t, log_snr = inputs(1, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda x: read(model(x, log_snr)), x_t.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_stay_in_the_models_precision(make_model: MakeModel, dtype: torch.dtype) -> None:
    denoised = make_model(perturbed=True).to(dtype)(*inputs(dtype=dtype))
    assert denoised.logits.dtype == denoised.x0_hat.dtype == denoised.hidden[-1].dtype == dtype


def test_logits_stay_in_full_precision_under_autocast(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    exact = model(*inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        denoised = model(*inputs())
    assert denoised.logits.dtype == denoised.x0_hat.dtype == torch.float32
    torch.testing.assert_close(denoised.probs, exact.probs, rtol=0.0, atol=0.1)


def test_length_up_to_the_maximum_and_not_beyond(make_model: MakeModel) -> None:
    model = make_model()
    assert model(*inputs(1, 12)).logits.shape == (1, 12, 11)
    with pytest.raises(ValueError, match=r"length 13.*maximum of 12"):
        model(*inputs(1, 13))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 30, "heads": 4}, "width 30"),
        ({"width": 12, "heads": 4}, "width 12"),  # heads of three dimensions cannot be rotated
        ({"objective": "l2"}, "'l2': use ce or mse"),
        ({"vocab_size": 0}, "positive"),
        ({"embedding_dim": 0}, "positive"),
        ({"layers": 0}, "positive"),
        ({"max_length": 0}, "positive"),
    ],
)
def test_an_impossible_config_is_refused(wrong: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoiserConfig(**{"vocab_size": 11, **wrong})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_sentence_is_denoised_alike_in_any_company(make_model: MakeModel, rng: torch.Generator) -> None:
    """Bit for bit, gradient included: or what a seed gives would depend on the batch that it is drawn in."""
    size = {"vocab_size": 800, "embedding_dim": 16, "width": 256, "heads": 4, "max_length": 40}
    model = make_model(perturbed=True, **size).requires_grad_(False)
    lengths = torch.arange(1, 41)
    x_t, log_snr = torch.randn(40, 40, 16, generator=rng), torch.tensor([0.5])

    def denoised(x_t: Tensor, lengths: Tensor | None) -> list[Tensor]:
        x_t = x_t.clone().requires_grad_(True)
        said = model(x_t, log_snr, lengths=lengths)
        inside = torch.arange(x_t.shape[1]) < (lengths[:, None] if lengths is not None else x_t.shape[1])
        (gradient,) = torch.autograd.grad((said.logits.log_softmax(-1)[..., 3] * inside).sum(), x_t)
        return [said.logits.detach(), said.x0_hat.detach(), gradient]

    together = denoised(x_t, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = denoised(x_t[row : row + 1, :length], None)
        assert all(torch.equal(a[row, :length], b[0]) for a, b in zip(together, alone, strict=True)), length


@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_everything_is_made_on_the_models_device(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """On a device whose tensors refuse those of another one, as a GPU's do."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for this device
    model = make_model(objective=objective, vocab_size=50, width=32, heads=4, max_length=24).to("meta")
    lengths = torch.tensor([20, 22], device="meta")
    x_t = torch.randn(2, 22, 4, device="meta").requires_grad_(True)
    clean = torch.zeros(2, 22, dtype=torch.bool, device="meta")
    denoised = model(x_t, torch.zeros(1, device="meta"), None, clean, lengths)
    denoised.logits.sum().backward()
    assert x_t.grad is not None
    tokens = torch.zeros(2, 5, dtype=torch.long, device="meta")
    bound = -bound_by_word(model, tokens, WarpSchedule(), lambda: torch.randn(2, 5, 4, device="meta"), levels=2).sum(-1)
    assert bound.device == x_t.grad.device == torch.device("meta")


def test_hidden_states_without_a_context_are_the_blocks_own(make_model: MakeModel) -> None:
    """A view would let autograd add up gradients in another order, and texts of earlier versions would change."""
    model = make_model(perturbed=True)
    x_t, log_snr = inputs(length=12)
    hidden = model(x_t.requires_grad_(True), log_snr).hidden
    assert [h.grad_fn.name() for h in hidden if h.grad_fn is not None] == ["AddBackward0"] * len(hidden)
