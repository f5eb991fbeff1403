"""How many failures a caller allows, and the code a job ends with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstar.errors import ConfigError
from mstar.training.exit_codes import ExitCode, allowed_failures, check_max_failures, exit_code


@pytest.mark.parametrize(
    ("spec", "num_total", "allowed"),
    [("0", 10, 0), ("5", 3, 5), ("1%", 1000, 10), ("1%", 99, 0), ("0.5%", 200, 1), ("7%", 100, 7)],
)
def test_allowed_failures(spec: str, num_total: int, allowed: int) -> None:
    assert allowed_failures(spec, num_total) == allowed


@pytest.mark.parametrize("spec", ["", "-1", "1.5", "x", "1 %", "101%", "nan", "1%%", "٣"])
def test_anything_else_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="--max-failures"):
        check_max_failures(spec)


@given(num_failed=st.integers(0, 50), extra=st.integers(0, 50), allowed=st.integers(0, 50))
def test_the_code_is_0_exactly_within_the_allowance(
    num_failed: int, extra: int, allowed: int
) -> None:
    code = exit_code(num_failed, num_failed + extra, str(allowed))
    assert (code == ExitCode.COMPLETE) == (num_failed <= allowed)


def test_the_four_ends_and_a_wrong_call_differ() -> None:
    assert sorted(ExitCode) == [0, 1, 2, 3, 130]
