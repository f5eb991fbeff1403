"""Two processes with unequal shares against one process with the whole batch."""

import os
import socket
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mstar.losses.cases import CaseEmbeddings
from mstar.losses.gather import gather_cases, gather_counts, gather_rows
from mstar.losses.stage1 import LossConfig, stage1_loss

SHARES = ((0, 5), (5, 14))  # five cases on one rank, nine on the other
CASES = SHARES[-1][1]


def toy_model() -> nn.ModuleDict:
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(7, 5) for name in ("wsi", "text", "gene")})
    model.register_parameter("log_scale", nn.Parameter(torch.tensor(2.0)))
    return model


def embed(model: nn.ModuleDict, start: int, stop: int) -> CaseEmbeddings:
    """The share of a fixed batch. The first rank has no RNA at all."""
    torch.manual_seed(1)
    inputs = {name: torch.randn(CASES, 7)[start:stop] for name in ("wsi", "text", "gene")}
    place = torch.arange(CASES)[start:stop]
    return CaseEmbeddings(
        **{name: model[name](rows) for name, rows in inputs.items()},
        has_wsi=place != 2,
        has_text=place % 4 != 3,
        has_gene=place >= 6,
        cancer=place % 3,
    )


def gradients_of(model: nn.ModuleDict) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(start: int, stop: int) -> tuple[Tensor, dict[str, int], dict[str, Tensor]]:
    model = toy_model()
    cases = gather_cases(embed(model, start, stop))
    found = stage1_loss(cases, model.log_scale.exp(), LossConfig())
    found.total.backward()
    return found.total.detach(), dict(found.counts), gradients_of(model)


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        total, counts, gradients = loss_and_gradients(*SHARES[rank])
        for gradient in gradients.values():  # what the engine does
            dist.all_reduce(gradient)
            gradient /= 2
        gathered = gather_cases(embed(toy_model(), *SHARES[rank]))
        empty = torch.ones(0 if rank == 0 else 2, 3)
        rows = gather_rows(empty, gather_counts(len(empty), empty.device))
        found = {
            "total": total,
            "counts": counts,
            "gradients": gradients,
            "cases": {f.name: getattr(gathered, f.name).detach() for f in fields(gathered)},
            "rows": rows,
        }
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_ranks_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    """Averaged over ranks, as the engine does it, with another number of cases on each."""
    mp.spawn(work, (free_port(), str(tmp_path)), nprocs=2)
    total, counts, gradients = loss_and_gradients(0, CASES)
    whole = embed(toy_model(), 0, CASES)
    assert min(counts.values()) >= 2
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["total"], total, rtol=1e-6, atol=1e-6)
        assert found["counts"] == counts
        torch.testing.assert_close(found["gradients"], gradients, rtol=1e-5, atol=1e-6)
        for field in fields(CaseEmbeddings):
            torch.testing.assert_close(
                found["cases"][field.name], getattr(whole, field.name).detach()
            )
        assert torch.equal(found["rows"], torch.ones(2, 3))
    assert all(float(g.abs().max()) > 1e-4 for g in gradients.values())


def test_one_process_keeps_its_own_rows() -> None:
    cases = embed(toy_model(), 0, CASES)
    assert gather_cases(cases) is cases
    assert gather_counts(3, torch.device("cpu")) == [3]
    assert gather_rows(cases.wsi, [CASES]) is cases.wsi
