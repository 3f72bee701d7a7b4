"""transformers: the Trainer with an attached optimiser, resumed exactly; and models that it saves and loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import BATCH, BATCHES, CLIP, Net, assert_same, by_hand, data, host, imported, quiet, schedule

from unitary_layers import ProjUNN, attach
from unitary_layers.testing import assert_unitary

transformers = imported("transformers")
pytestmark = quiet


class WithLoss(nn.Module):
    def __init__(self, gradient: str = "dense") -> None:
        super().__init__()
        self.net = Net(gradient)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self.net(x)
        return {"loss": (output - labels).square().mean(), "logits": output}


def trained(folder: Path, steps: int, gradient: str = "dense", resume: Path | None = None, how: str = "attach") -> Net:
    model = WithLoss(gradient)
    if how == "attach":
        optimizer = host(model)
        attach(model, optimizer)
    else:
        optimizer = ProjUNN(model.parameters(), lr=1e-2)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="sequential",
        save_steps=BATCHES,
        max_grad_norm=CLIP,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    examples = [{"x": x, "labels": y} for x, y in data()]
    given: dict[str, Any] = {"model": model, "args": arguments, "train_dataset": examples}
    trainer = transformers.Trainer(**given, optimizers=(optimizer, schedule(optimizer) if how == "attach" else None))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model.net


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_the_trainer_is_the_loop_by_hand(gradient, tmp_path: Path):
    assert_same(trained(tmp_path, 2 * BATCHES, gradient), by_hand(2, gradient, clip=CLIP))


@pytest.mark.parametrize("how", ["attach", "ProjUNN"])
def test_a_run_goes_on_where_it_was_saved(how, tmp_path: Path):
    whole = trained(tmp_path / "a", 2 * BATCHES, how=how)
    again = trained(tmp_path / "b", 2 * BATCHES, how=how, resume=tmp_path / "a" / f"checkpoint-{BATCHES}")
    assert_same(again, whole)


class Config(transformers.PretrainedConfig):
    model_type = "unitary_toy"

    def __init__(self, seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.seed = seed


class Pretrained(transformers.PreTrainedModel):
    config_class = Config
    base_model_prefix = "toy"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.net = Net(seed=config.seed)
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_pretrained_model_comes_back_and_trains(tmp_path: Path):
    """It is made on the meta device, and its tensors are assigned one by one."""
    model = Pretrained(Config(seed=3)).eval()
    model.save_pretrained(tmp_path)
    back = Pretrained.from_pretrained(tmp_path)
    x, _ = data()[:]
    with torch.no_grad():
        assert torch.equal(back(x), model(x))
    optimizer = host(back.train())
    attach(back, optimizer)
    back(x).square().mean().backward()
    optimizer.step()
    assert_unitary(back)
    assert back.net.rnn.weight_hh_l0_count == 1
