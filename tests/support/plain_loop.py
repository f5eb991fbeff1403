"""The training loop as anybody would write it, without any of ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mstar.downstream.bags import PackedBags
from mstar.downstream.config import (
    HONEST,
    TrialConfig,
)
from mstar.downstream.fold_views import view_fold
from mstar.downstream.stream import StreamKind, training_batches
from mstar.models.heads import build_head
from mstar.training.seeds import reseed


def plain_loop(task: tuple[Any, PackedBags, Any], config: TrialConfig) -> list[list[float]]:
    """Losses and validation probabilities, epoch by epoch, of a loop without any of ours."""
    data, bags, _ = task
    view = view_fold(data, 0, HONEST)
    reseed("weights", 1, view.fold)
    head = build_head("abmil", config.head_options, input_dim=bags.dim, num_outputs=2)
    optimizer = torch.optim.Adam(head.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    found = []
    for epoch in range(config.epochs):
        head.train()
        losses = []
        sizes = bags.sizes()[view.train.places]
        plan = training_batches(sizes, StreamKind.of(config), seed=1, fold=view.fold, epoch=epoch)
        for (at,) in plan:
            bag = torch.tensor(np.array(bags.bag(int(view.train.places[at])), np.float32))
            label = torch.tensor([view.train.labels[at]])
            loss = functional.cross_entropy(head(bag, torch.tensor([0, len(bag)])).logits, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        head.eval()
        with torch.no_grad():
            bags_of = [np.array(bags.bag(at), np.float32) for at in view.select.places.tolist()]
            probabilities = [
                head(torch.tensor(bag), torch.tensor([0, len(bag)])).logits.softmax(1)[0, 1].item()
                for bag in bags_of
            ]
        found.append([float(np.mean(losses)), *probabilities])
    return found
