"""A bag of 100,000 patches within the memory that the guide states."""

import os
import subprocess
import sys

import pytest

from mstar.models.heads import HEADS

PROGRAM = """
import resource, sys, torch
from mstar.models.heads import HEADS, GeneLayout, GroupedGenes, build_head
torch.set_num_threads(1)
name, train, dim = sys.argv[1], sys.argv[2] == "train", int(sys.argv[3])
x = torch.randn(1000, dim).half().repeat(100, 1)
offsets, labels = torch.tensor([0, len(x)]), torch.tensor([1])
outputs = 1 if name == "cox_linear" else 2
layout = GeneLayout(genes=600, groups=(100,) * 6)
head = build_head(name, {}, input_dim=dim, num_outputs=outputs, genes=layout)
genes = GroupedGenes(values=torch.randn(1, 600), columns=torch.arange(600).split(100))
more = (genes,) if HEADS[name].genes else ()
if hasattr(head, "fit"):
    head.fit(x[:200], torch.tensor([0, 100, 200]), torch.tensor([0, 1]))
head(x[:100], torch.tensor([0, 100]), labels, *more).logits.sum()
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = used()
with torch.set_grad_enabled(train):
    output = head.train(train)(x, offsets, labels, *more)
if train:
    extra = output.extra_loss
    (output.logits.sum() + (0 if extra is None else extra)).backward()
assert bool(output.logits.isfinite().all())
print(used() - before)
"""
JUDGING_MIB = {"transmil": 3500, "cmta": 2000}
TRAINING_MIB = {"clam_sb": 1800, "clam_mb": 1800, "porpoise": 2300}
TRANSFORMERS = ("transmil", "transmil_plus", "cmta")
TRAINED = [name for name in HEADS if HEADS[name].trained and name not in TRANSFORMERS]


def peak_mib(name: str, how: str, dim: int = 1024) -> int:
    """MiB that a bag of 100,000 patches takes above a small one and its stored features."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, how, str(dim)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return int(run.stdout)


def test_abmil_judges_100_000_patches() -> None:
    assert peak_mib("abmil", "judge", dim=64) < 350


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HEADS if name != "transmil_plus"])
def test_every_head_judges_100_000_patches(name: str) -> None:
    assert peak_mib(name, "judge") < JUDGING_MIB.get(name, 700)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_pooling_heads_train_on_100_000_patches(name: str) -> None:
    assert peak_mib(name, "train") < TRAINING_MIB.get(name, 1000)


@pytest.mark.slow
def test_transmil_trains_on_100_000_patches() -> None:
    assert peak_mib("transmil", "train") < 8000
