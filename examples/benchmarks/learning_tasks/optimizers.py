"""Optimisers of contenders: manifold Muon of full rank, and those of torch with one set of options for all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer


class Muon(Optimizer):
    """`M <- mu M + G`, `W <- W exp(-lr msign(skew(W^T M)))`, with dense matrices; lr is the angle of all planes."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.mul_(group["momentum"]).add_(p.grad)
                w, m = (p.mT, m.mT) if p.size(-2) > p.size(-1) else (p, m)  # the larger side turns
                s = w.mT @ m
                u, _, vh = torch.linalg.svd(s - s.mT)
                j = u @ vh
                turned = w @ torch.linalg.matrix_exp(group["lr"] / 2 * (j.mT - j))
                p.copy_(turned.mT if w is not p else turned)


def adamw(params: Iterable[Tensor], lr: float) -> AdamW:
    return AdamW(params, lr=lr, weight_decay=0.0)


def nesterov(params: Iterable[Tensor], lr: float) -> SGD:
    return SGD(params, lr=lr, momentum=0.9, nesterov=True)
