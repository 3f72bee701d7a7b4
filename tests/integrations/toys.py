"""A small network that the recipes train, its data, and the loop by hand that each must equal."""

import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from unitary_layers import OrthogonalConv2d, UnitaryLinear, UnitaryRNN, attach

BATCHES, BATCH, CLIP = 4, 8, 1.0
# Other packages may warn as they like; ours are still errors.
quiet = pytest.mark.filterwarnings("ignore", "error:.*unitary weight")


def imported(name: str) -> ModuleType:
    """A package of the extra ``integrations``; without it the tests of the file are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


class Net(nn.Module):
    """A convolution, a recurrence and a linear layer: ``(b, 4, 4, 4)`` to ``(b, 1)``."""

    def __init__(self, gradient: str = "dense", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = OrthogonalConv2d(4, 4, input_size=4, gradient=gradient)
        self.rnn = UnitaryRNN(4, 8, nonlinearity="modrelu", batch_first=True, gradient=gradient)
        self.linear = UnitaryLinear(8, 8, gradient=gradient)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(self.conv(x).flatten(2).mT)
        return self.head(self.linear(states[:, -1]))


def data() -> TensorDataset:
    x = torch.randn(BATCHES * BATCH, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.mean((1, 2, 3))[:, None])


def loader() -> DataLoader:
    return DataLoader(data(), batch_size=BATCH)


def loss_of(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def host(model: nn.Module) -> AdamW:
    return AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def schedule(optimizer: AdamW) -> LRScheduler:
    return CosineAnnealingLR(optimizer, 2 * BATCHES)


def by_hand(epochs: int, gradient: str = "dense", accumulate: int = 1, clip: float | None = None) -> Net:
    """The model after the loop that a user would write."""
    model = Net(gradient)
    optimizer = host(model)
    attach(model, optimizer)
    scheduler = schedule(optimizer)
    for _ in range(epochs):
        for i, batch in enumerate(loader(), start=1):
            (loss_of(model, batch) / accumulate).backward()
            if i % accumulate == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return model


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Bit for bit, counters included; and something has moved."""
    found, expected, start = model.state_dict(), other.state_dict(), Net().state_dict()
    assert found.keys() == expected.keys() == start.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert not any(torch.equal(found[name], start[name]) for name in found if name.endswith(("weight", "count")))
