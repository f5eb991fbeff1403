"""A bag of 50,000 patches at the published sizes: finite gradients, within a stated memory."""

import json
import subprocess
import sys

import pytest

PEAK_GIB = {"train": 3.2, "write": 1.5}
"""Of the whole process; measured values are in platform/docs/report-generation.md."""

SCRIPT = """
import json, resource, sys
import torch
from torch.nn.functional import cross_entropy
from mstar.models.histgen import DecodingConfig, HistGen, HistGenConfig, generate
torch.set_num_threads(1)
torch.manual_seed(0)
model = HistGen(HistGenConfig(), 1024, 4000)
x, offsets = torch.randn(50_000, 1024), torch.tensor([0, 50_000])
finite = True
if sys.argv[1] == "train":
    read, true = torch.randint(3, 4000, (2, 1, 100))
    logits = model.train()(x, offsets, read).logits
    cross_entropy(logits.flatten(0, 1), true.flatten()).backward()
    finite = all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
else:
    config = DecodingConfig(max_new_tokens=20)
    (one,) = generate(model.eval(), x, offsets, begin=1, end=2, config=config)
    finite = one.log_probability > float("-inf")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"finite": finite, "peak_gib": peak}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("work", ["train", "write"])
def test_a_long_bag_has_finite_gradients_and_stays_within_its_memory(work: str) -> None:
    command = [sys.executable, "-c", SCRIPT, work]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(work, found)
    assert found["finite"]
    assert found["peak_gib"] < PEAK_GIB[work]
