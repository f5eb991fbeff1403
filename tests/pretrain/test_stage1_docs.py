"""The guide to stage 1 says what the code does."""

from __future__ import annotations

import re

from mstar.cli.resolve import known_flags
from mstar.pretrain.stage1_config import Stage1Config
from support.settings_table import DOC, settings_table, with_table


def test_the_table_of_settings_is_that_of_the_config() -> None:
    text = DOC.read_text()
    assert with_table(text) == text, "run: python tests/support/settings_table.py"


def test_the_table_has_every_flag_and_a_meaning_for_each() -> None:
    table = settings_table()
    flags = {flag.replace("_", "-") for flag in known_flags(Stage1Config)} - {"--help", "-h"}
    listed = re.findall(r"^\| `(--[^`]+)`.*\| ([^|]{10,}) \|$", table, flags=re.MULTILINE)
    names = {flag.replace("--no-", "--").replace(".no-", ".") for flag, _ in listed}
    known = {flag.replace("--no-", "--").replace(".no-", ".") for flag in flags}
    assert names == known


def test_every_flag_in_the_commands_exists() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", DOC.read_text(), flags=re.DOTALL)
    commands = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    stage1 = [line for line in commands if "stage1" in line and "--" in line]
    assert len(stage1) >= 4
    known = {flag.replace("_", "-") for flag in known_flags(Stage1Config)}
    for line in stage1:
        after = line.split("stage1", 1)[1]
        given = {flag for flag in re.findall(r"--[a-z0-9.-]+", after)}
        assert given <= known, line
