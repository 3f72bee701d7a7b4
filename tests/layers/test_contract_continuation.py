"""Stop at any step, save the state dicts, load them in a new process: training goes on bit for bit.

Every layer, by `attach(model, AdamW)` and by `ProjUNN`, both under a schedule, with every sampler and every state that
a rule keeps. One new process continues all cases, and draws other numbers from torch's own generator.
"""

import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from entries import ENTRIES, Entry, loss_of, same_tensors
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from unitary_layers import ProjUNN, UpdateRule, attach
from unitary_layers.projunn.sampling import LINEAR_SAMPLERS, SAMPLERS

STEPS = 4
RULES = {
    **{sampler: UpdateRule("DT"[i % 2], rank=2, sampler=sampler, lr=0.3) for i, sampler in enumerate(SAMPLERS)},
    "gradient": UpdateRule("D", rank=2, sampler="power", lr=0.02, retract_every=2, direction="gradient"),
}
WAYS = ("attach", "rmsprop")


@dataclass(frozen=True)
class Case:
    """A layer, the rule of its unitary weights, and what steps them."""

    entry: Entry
    rule: str
    way: str | None

    @property
    def name(self) -> str:
        return f"{self.entry.name} {self.rule} {self.way}"

    @property
    def stop(self) -> int:
        """After how many steps it is saved: any number, the same in every run."""
        return random.Random(self.name).randrange(STEPS)

    def start(self) -> tuple[nn.Module, Optimizer, LRScheduler]:
        module = self.entry.make(update=RULES[self.rule])
        if self.way == "attach":
            optimizer = AdamW(module.parameters(), lr=0.02, weight_decay=0.1)
            attach(module, optimizer)
        else:
            optimizer = ProjUNN(module.parameters(), lr=0.02, direction=self.way, momentum=0.5, base="adamw")
        return module, optimizer, CosineAnnealingLR(optimizer, STEPS)

    def train(self, parts: tuple[nn.Module, Optimizer, LRScheduler], first: int, last: int) -> None:
        """The steps from `first` up to `last`, each on a batch of its own."""
        module, optimizer, scheduler = parts
        for index in range(first, last):
            loss_of(module, self.entry.input(seed=index)).backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


def cases() -> list[Case]:
    """Every rule with attach; ProjUNN, whose direction has a state of its own, with those that add one of theirs."""
    found = []
    for entry in ENTRIES:
        rules = [rule for rule in RULES if not entry.factored or RULES[rule].sampler in LINEAR_SAMPLERS]
        found += [Case(entry, rule, "attach") for rule in rules]
        rule, ways = ("gradient", (None,)) if entry.factored else ("power", WAYS[1:])
        found += [Case(entry, rule, way) for way in ways]
    return found


def state_of(parts: tuple[nn.Module, Optimizer, LRScheduler]) -> list[dict]:
    return [part.state_dict() for part in parts]


def flat(state: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors and numbers of a nested state."""
    if isinstance(state, (dict, list, tuple)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, value in items for k, v in flat(value, f"{prefix}/{key}").items()}
    return {prefix: torch.as_tensor(state)} if isinstance(state, (torch.Tensor, int, float)) else {}


def continue_all(folder: Path) -> None:
    """What the new process does: loads each case, trains it to the end and saves it again."""
    torch.set_num_threads(1)
    torch.manual_seed(12345)
    saved, results = torch.load(folder / "stopped.pt", weights_only=True), {}
    for case in cases():
        parts = case.start()
        for part, state in zip(parts, saved[case.name], strict=True):
            part.load_state_dict(state)
        case.train(parts, case.stop, STEPS)
        results[case.name] = state_of(parts)
    torch.save(results, folder / "continued.pt")


def test_every_loop_goes_on_bit_for_bit_in_a_new_process(tmp_path: Path) -> None:
    stopped, whole = {}, {}
    for case in cases():
        parts = case.start()
        case.train(parts, 0, case.stop)
        torch.save(state_of(parts), tmp_path / "one.pt")  # the state dicts share memory with what goes on
        stopped[case.name] = torch.load(tmp_path / "one.pt", weights_only=True)
        case.train(parts, case.stop, STEPS)
        whole[case.name] = state_of(parts)
    torch.save(stopped, tmp_path / "stopped.pt")
    code = "import sys, pathlib; sys.path[:0] = sys.argv[1:3]; import test_contract_continuation as test; "
    code += "test.continue_all(pathlib.Path(sys.argv[3]))"
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(here), str(here.parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    continued = torch.load(tmp_path / "continued.pt", weights_only=True)
    differing = [name for name in whole if not same_tensors(flat(whole[name]), flat(continued[name]))]
    assert not differing
    moved = [name for name in whole if not same_tensors(flat(whole[name]), flat(stopped[name]))]
    assert moved == list(whole)
