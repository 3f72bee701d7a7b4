"""huggingface_hub: a model of every layer comes back from the folder that ``PyTorchModelHubMixin`` has written."""

from pathlib import Path

import pytest
import torch
from layers.entries import ENTRIES, output_of, same_tensors, snapshot
from torch import Tensor, nn
from toys import imported, quiet

from unitary_layers import UnitaryLinear, UpdateRule, unitary_weights

PyTorchModelHubMixin = imported("huggingface_hub").PyTorchModelHubMixin
pytestmark = quiet
BY_NAME = {entry.name: entry for entry in ENTRIES}


class Model(nn.Module, PyTorchModelHubMixin):
    """The recipe: what the constructor is told is what JSON holds, or a rule."""

    def __init__(self, layer: str, update: UpdateRule) -> None:
        super().__init__()
        self.layer = BY_NAME[layer].make(update=update)

    def forward(self, x: Tensor) -> Tensor:
        return output_of(self.layer, x)


# A dtype is no JSON: what stands for it in the file, and back.
DTYPES = {torch.dtype: (lambda dtype: str(dtype).removeprefix("torch."), lambda name: getattr(torch, name))}


class Linear(UnitaryLinear, PyTorchModelHubMixin, coders=DTYPES):
    """A layer of ours itself."""


@pytest.mark.parametrize("name", BY_NAME)
def test_every_layer_comes_back(name, tmp_path: Path):
    model, x = Model(name, UpdateRule("D", rank=2, lr=0.25)).eval(), BY_NAME[name].input()
    model.save_pretrained(tmp_path)
    back = Model.from_pretrained(tmp_path)
    assert same_tensors(snapshot(back), snapshot(model))
    assert [w.declared for w in unitary_weights(back)] == [w.declared for w in unitary_weights(model)]
    with torch.no_grad():
        assert torch.equal(back(x), model(x))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64])
def test_a_layer_of_ours_may_be_the_model(dtype, tmp_path: Path):
    layer = Linear(6, 4, dtype=dtype, update=UpdateRule("D"))
    layer.save_pretrained(tmp_path)
    back = Linear.from_pretrained(tmp_path)
    assert same_tensors(snapshot(back), snapshot(layer))
    assert back.update == layer.update
