"""Random and fixed cases for the tests of splits."""

import random
from collections.abc import Sequence

from hypothesis import strategies as st

from mstar.data.cases import Case

CANCERS = ("BRCA", "COAD", "READ", "STAD", "KIRC")


def some_cases(
    count: int, *, seed: int = 0, cancers: Sequence[str] = CANCERS, known: float = 0.9
) -> list[Case]:
    """Cases with random modalities, sites and survival; `known` is the share with survival."""
    draw = random.Random(seed)
    return [_case(draw, f"GEN-{number:05d}", cancers, known) for number in range(count)]


def _case(draw: random.Random, case_id: str, cancers: Sequence[str], known: float) -> Case:
    survival = draw.random() < known
    return Case(
        case_id=case_id,
        cancer_type=draw.choice(cancers),
        slides=tuple(f"{case_id}-{n}" for n in range(draw.choice((0, 1, 1, 1, 2)))),
        report=case_id if draw.random() < 0.8 else None,
        rna=case_id if draw.random() < 0.8 else None,
        site=f"S{draw.randrange(5)}",
        os_months=round(draw.expovariate(1 / 30), 1) if survival else None,
        os_event=int(draw.random() < 0.5) if survival else None,
    )


@st.composite
def cohorts(draw: st.DrawFn) -> list[Case]:
    """Any small cohort: few to many cancers, ties in time, all censored, no survival at all."""
    ids = draw(st.sets(st.text("abcXYZ019-é", min_size=1, max_size=6), min_size=1, max_size=60))
    known = draw(st.sampled_from((0.0, 0.5, 1.0)))
    cancers = draw(st.sampled_from((("BRCA",), ("COAD", "READ"), CANCERS)))
    months = draw(st.sampled_from(((1.0,), (0.0, 1.0, 2.5), tuple(map(float, range(100))))))
    events = draw(st.sampled_from(((0,), (1,), (0, 1))))
    choose = random.Random(draw(st.integers(0, 999)))
    cases = []
    for case_id in sorted(ids):
        survival = choose.random() < known
        cases.append(
            Case(
                case_id=case_id,
                cancer_type=choose.choice(cancers),
                os_months=choose.choice(months) if survival else None,
                os_event=choose.choice(events) if survival else None,
            )
        )
    return cases
