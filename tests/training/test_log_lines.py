"""Output as JSON lines: whole lines only, whatever the writes are cut into."""

import io
import json
import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.cli.main import main
from mstar.training.exit_codes import ExitCode
from mstar.training.log_lines import LOG_FORMAT, JsonLines, structured_output
from mstar.training.progress import ProgressReporter


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text('ab \n"é', max_size=8)))
def test_however_text_is_cut_its_lines_come_out_whole(pieces: list[str]) -> None:
    below = io.StringIO()
    stream = JsonLines("embed", "stdout", below)
    for piece in pieces:
        stream.write(piece)
    stream.end()
    lines = [json.loads(line) for line in below.getvalue().splitlines()]
    wanted = [line.rstrip() for line in "".join(pieces).split("\n") if line.strip()]
    assert [line["message"] for line in lines] == wanted
    assert all(line["job"] == "embed" for line in lines)


def test_progress_carries_its_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar is not drawn, warnings of libraries are lines too, and the streams are put back."""
    monkeypatch.setenv(LOG_FORMAT, "json")
    before = sys.stdout, sys.stderr
    with structured_output("embed"):
        with ProgressReporter("embed", num_slides=2) as progress:
            progress.update(slides_done=2, patches_done=7)
        logging.getLogger("elsewhere").warning("look out")
        print("summary", end="")
    assert (sys.stdout, sys.stderr) == before
    said = capsys.readouterr()
    shown = [json.loads(line) for line in said.err.splitlines()]
    assert shown[0]["event"] == "progress"
    assert (shown[0]["slides_done"], shown[0]["patches_done"]) == (2, 7)
    assert shown[0]["message"].startswith("embed: 2/2 slides")
    assert json.loads(said.out)["message"] == "summary"


@pytest.mark.parametrize("words", [["--log-format", "json"], ["--log-format=json"]])
def test_the_flag_goes_anywhere(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOG_FORMAT, "plain")
    assert main(["tasks", *words, "list"]) == ExitCode.COMPLETE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 90
    assert all(json.loads(line)["job"] == "tasks" for line in lines)


def test_an_unknown_format_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(LOG_FORMAT, "plain")
    assert main(["tasks", "list", "--log-format", "yaml"]) == ExitCode.USAGE
    assert "plain, json" in capsys.readouterr().err
