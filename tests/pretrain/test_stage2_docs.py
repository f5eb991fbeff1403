"""The guide to stage 2 says what the code does, and its arithmetic starts from what is measured."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mstar.cli.resolve import known_flags
from mstar.data.shards.order import rank_lanes
from mstar.errors import ConfigError
from mstar.models.encoder_table import build_vit_large
from mstar.pretrain.stage2_config import Stage2Config
from mstar.recipes.stage2 import paper
from support import stage2_tables as tables

TEXT = tables.DOC.read_text()


def test_the_tables_are_those_of_today() -> None:
    assert tables.with_tables(TEXT) == TEXT, "run: python tests/support/stage2_tables.py"


def test_the_table_has_every_flag_and_a_meaning_for_each() -> None:
    table = tables.settings_table()
    flags = {flag.replace("_", "-") for flag in known_flags(Stage2Config)} - {"--help", "-h"}
    listed = re.findall(r"^\| `(--[^`]+)`.*\| ([^|]{10,}) \|$", table, flags=re.MULTILINE)
    names = {flag.replace("--no-", "--").replace(".no-", ".") for flag, _ in listed}
    known = {flag.replace("--no-", "--").replace(".no-", ".") for flag in flags}
    assert names == known


def test_every_flag_in_the_commands_and_the_text_exists() -> None:
    known = {flag.replace("_", "-") for flag in known_flags(Stage2Config)}
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if "stage2" in line]
    assert len(commands) >= 5
    for line in commands:
        after = line.split("stage2", 1)[1]
        assert set(re.findall(r"--[a-z0-9.-]+", after)) <= known, line
    prose = re.sub(r"```bash\n.*?```", "", TEXT, flags=re.DOTALL)
    said = set(re.findall(r"`(--[a-z0-9.-]+)", prose)) - {"--augment."}
    assert said <= known


def test_parameters_and_operations_are_those_of_the_encoder() -> None:
    with torch.device("meta"):
        encoder, patch = build_vit_large(), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as forward:
        encoder(patch)
    with FlopCounterMode(display=False) as both:
        encoder(patch).sum().backward()
    assert sum(p.numel() for p in encoder.parameters()) == tables.PARAMETERS
    assert forward.get_total_flops() == pytest.approx(tables.FORWARD_FLOP, rel=1e-4)
    assert both.get_total_flops() == pytest.approx(tables.TRAINING_FLOP, rel=1e-4)


@pytest.mark.parametrize("column", tables.COLUMNS, ids=lambda c: f"{c.gpus}x{c.batch}")
def test_a_column_is_a_run_that_the_config_allows_with_as_many_lanes(
    column: tables.Machines,
) -> None:
    named = {"shards": "T", "weights": "W", "out": "E", "batch_patches": column.batch}
    config = replace(paper(), **named, lanes=max(64, column.gpus))
    lanes = [rank_lanes(config.order.lanes, rank, column.gpus) for rank in range(column.gpus)]
    assert len({len(one) for one in lanes}) == 1, "no padding"
    if column.gpus > 64:
        with pytest.raises(ConfigError, match="64 lanes"):
            rank_lanes(replace(config, lanes=64).order.lanes, 0, column.gpus)


def test_a_run_costs_what_its_bytes_and_operations_say() -> None:
    eight = tables.COLUMNS[0]
    seconds = tables.PATCHES * 492.12e9 / (8 * 0.35 * 989e12)
    seconds += eight.steps * 2 * 7 / 8 * 4 * 303_350_784 / 360e9
    assert eight.hours == pytest.approx(seconds / 3600, rel=1e-3)
    assert f"**${eight.hours * 8 * 3:,.0f}**" in TEXT
