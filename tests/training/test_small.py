"""The training of oracles: how long, with which rates, and what it leaves."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ctrlgen.training import small
from ctrlgen.training.batches import LengthBatches
from ctrlgen.training.small import train_small

SENTENCES = [[word, 1 + word % 3] for word in range(12)]


class Table(nn.Module):
    """log p(class | word), and the rates at which it is trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.logits = nn.Embedding(12, 2)

    def loss(self, tokens: Tensor, indices: Sequence[int]) -> Tensor:
        assert tokens[:, 0].tolist() == list(indices)
        return nn.functional.cross_entropy(self.logits(tokens[:, 0]), tokens[:, 0] % 2)


def test_it_learns_and_leaves_a_network_for_use() -> None:
    table = Table()
    before = table.logits.weight.detach().clone()
    events = list(train_small(table, table.loss, LengthBatches(SENTENCES, 8, 0), 400))
    assert [(event.step, event.steps) for event in events] == [(step, 400) for step in range(20, 401, 20)]
    assert events[-1].loss < 0.8 * events[0].loss
    assert events[-1].epoch == pytest.approx(400 / 3)
    assert not torch.equal(table.logits.weight, before)
    assert not table.training
    assert not any(parameter.requires_grad for parameter in table.parameters())


@pytest.mark.parametrize(("most", "steps"), [(3000, 180), (100, 100)])
def test_the_texts_say_how_long(most: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "MOST_STEPS", most)
    table = Table()
    *_, last = train_small(table, table.loss, LengthBatches(SENTENCES, 8, 0))
    assert last.steps == steps


@pytest.mark.parametrize(("steps", "warmup"), [(40, 4), (2000, 50)])
def test_the_rate_rises_within_a_tenth_and_falls_to_nothing(
    steps: int, warmup: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])

    def optimizers(module: nn.Module, matrix_lr: float, lr: float) -> list[torch.optim.Optimizer]:
        optimizer = Watched(module.parameters(), lr)
        optimizer.param_groups[0]["peak_lr"] = lr
        return [optimizer]

    monkeypatch.setattr(small, "make_optimizers", optimizers)
    table = Table()
    list(train_small(table, table.loss, LengthBatches(SENTENCES, 8, 0), steps))
    assert len(rates) == steps
    assert rates[0] == pytest.approx(small.LR / warmup)
    assert rates.index(max(rates)) == pytest.approx(warmup, abs=2)
    assert rates[-1] == pytest.approx(small.LR / steps)
