"""Lightning: automatic and manual optimisation, accumulation, clipping, and checkpoints."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from toys import CLIP, Net, assert_same, by_hand, host, imported, loader, loss_of, quiet, schedule

from unitary_layers import attach

L = imported("lightning.pytorch")
pytestmark = quiet


class Module(L.LightningModule):
    """The recipe: attach where the optimiser is made."""

    def __init__(self, gradient: str = "dense", manual: bool = False) -> None:
        super().__init__()
        self.net = Net(gradient)
        self.automatic_optimization = not manual

    def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:
        loss = loss_of(self.net, batch)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()
        return None

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = host(self)
        attach(self, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer), "interval": "step"}}


def fitted(module: Module, epochs: int, folder: Path, ckpt: Path | None = None, **options: Any) -> Any:
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize("gradient", ["dense", "factored"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_automatic_optimisation_is_the_loop_by_hand(gradient, accumulate, tmp_path: Path):
    module = Module(gradient)
    fitted(module, 2, tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=CLIP)
    assert_same(module.net, by_hand(2, gradient, accumulate, CLIP))


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_manual_optimisation_is_the_loop_by_hand(gradient, tmp_path: Path):
    module = Module(gradient, manual=True)
    fitted(module, 2, tmp_path)
    assert_same(module.net, by_hand(2, gradient))


def test_a_run_goes_on_where_it_was_saved(tmp_path: Path):
    fitted(Module(), 1, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    module = Module()
    fitted(module, 2, tmp_path, ckpt=tmp_path / "last.ckpt")
    assert_same(module.net, by_hand(2))
