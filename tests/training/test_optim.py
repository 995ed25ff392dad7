"""Muon against its definition."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ctrlgen.diffusion.denoiser import Denoiser
from ctrlgen.diffusion.precision import has_fast_bfloat16
from ctrlgen.training.optim import NEWTON_SCHULZ, Muon, make_optimizers, orthogonalize

FAST = has_fast_bfloat16("cpu")  # then products round to eight bits
CLOSE = {"rtol": 0.05, "atol": 0.05} if FAST else {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_orthogonalize_brings_singular_values_near_one(
    shape: tuple[int, ...], scale: float, rng: torch.Generator
) -> None:
    found = orthogonalize(scale * torch.randn(shape, generator=rng))
    assert found.shape == shape
    singular = torch.linalg.svdvals(found)
    assert singular.max() < 1.35
    assert singular.mean() > 0.7


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    u, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
    v, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))
    values = torch.tensor([4.0, 3.0, 2.0, 2.0, 1.0, 0.5])
    a, b, c = NEWTON_SCHULZ
    expected = values / values.norm()
    for _ in range(5):
        expected = a * expected + b * expected**3 + c * expected**5  # the same polynomial on singular values
    torch.testing.assert_close(orthogonalize((u * values @ v.T)[None])[0], u * expected @ v.T, **CLOSE)


def test_orthogonalize_of_a_stack_is_one_by_one(rng: torch.Generator) -> None:
    stack = torch.randn(4, 10, 6, generator=rng) * torch.tensor([1.0, 10.0, 0.1, 100.0])[:, None, None]
    torch.testing.assert_close(orthogonalize(stack), torch.cat([orthogonalize(m[None]) for m in stack]), **CLOSE)


def test_orthogonalize_of_zero_is_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_muon_steps_follow_the_formula(rng: torch.Generator) -> None:
    parameter = nn.Parameter(torch.randn(12, 3, generator=rng))
    muon = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.2)
    expected, buffer = parameter.detach().clone(), torch.zeros(12, 3)
    for _ in range(3):
        gradient = torch.randn(12, 3, generator=rng)
        parameter.grad = gradient.clone()
        muon.step()
        buffer = 0.9 * buffer + 0.1 * gradient
        nesterov = 0.9 * buffer + 0.1 * gradient
        direction = orthogonalize(nesterov[None])[0]
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * (12 / 3) ** 0.5 * direction
        torch.testing.assert_close(parameter.detach(), expected, **CLOSE)


def test_muon_of_many_matrices_is_muon_of_each(rng: torch.Generator) -> None:
    shapes = [(6, 4), (4, 6), (6, 4), (4, 4), (6, 4)]
    values = [torch.randn(shape, generator=rng) for shape in shapes]
    together, alone = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
    optimizers = [Muon(together), *(Muon([parameter]) for parameter in alone)]
    for _ in range(3):
        for one, other in zip(together, alone, strict=True):
            one.grad = torch.randn(one.shape, generator=rng)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), **CLOSE)


def test_muon_leaves_parameters_without_gradient_alone(rng: torch.Generator) -> None:
    frozen, free = (nn.Parameter(torch.randn(4, 4, generator=rng)) for _ in range(2))
    before = frozen.detach().clone()
    free.grad = torch.ones(4, 4)
    Muon([frozen, free]).step()
    assert torch.equal(frozen.detach(), before)
    assert not torch.equal(free.detach(), before)


def test_muon_solves_a_quadratic(rng: torch.Generator) -> None:
    wanted = torch.randn(8, 5, generator=rng)
    parameter = nn.Parameter(torch.zeros(8, 5))
    muon = Muon([parameter], lr=0.05, weight_decay=0.0)
    for step in range(150):
        muon.param_groups[0]["lr"] = 0.05 * (1 - step / 150)
        parameter.grad = parameter.detach() - wanted
        muon.step()
    assert (parameter.detach() - wanted).norm() < 0.05 * wanted.norm()


def test_muon_resumes_from_its_state(rng: torch.Generator) -> None:
    gradients = torch.randn(4, 5, 5, generator=rng)

    def run(parameter: nn.Parameter, muon: Muon, steps: slice) -> None:
        for gradient in gradients[steps]:
            parameter.grad = gradient.clone()
            muon.step()

    whole = nn.Parameter(torch.eye(5))
    run(whole, Muon([whole]), slice(None))
    halted = nn.Parameter(torch.eye(5))
    before = Muon([halted])
    run(halted, before, slice(0, 2))
    after = Muon([halted])
    after.load_state_dict(before.state_dict())
    run(halted, after, slice(2, 4))
    torch.testing.assert_close(halted.detach(), whole.detach())


def test_optimizers_share_the_parameters_out(make_model: Callable[..., Denoiser]) -> None:
    model = make_model()
    model.is_clean.requires_grad_(False)
    muon, adam = make_optimizers(model, matrix_lr=0.02, lr=1e-3)
    assert isinstance(muon, Muon)
    assert isinstance(adam, torch.optim.AdamW)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, others = ([name_of[id(p)] for p in o.param_groups[0]["params"]] for o in (muon, adam))
    kinds = ("qkv", "attention_out", "mlp_in", "mlp_out")
    assert sorted(matrices) == sorted(f"blocks.{block}.{kind}.weight" for block in range(2) for kind in kinds)
    assert sorted(matrices + others) == sorted(set(name_of.values()) - {"is_clean"})
    assert [o.param_groups[0]["peak_lr"] for o in (muon, adam)] == [0.02, 1e-3]


def test_matrix_rate_zero_leaves_all_to_adam(make_model: Callable[..., Denoiser]) -> None:
    model = make_model()
    (adam,) = make_optimizers(model, matrix_lr=0.0, lr=1e-3)
    assert isinstance(adam, torch.optim.AdamW)
    assert len(adam.param_groups[0]["params"]) == len(list(model.parameters()))


def test_blocks_inside_a_larger_module_are_found(make_model: Callable[..., Denoiser]) -> None:
    nested = nn.ModuleDict({"denoiser": make_model()})
    muon, _ = make_optimizers(nested, matrix_lr=0.02, lr=1e-3)
    assert len(muon.param_groups[0]["params"]) == 8
