"""The step time that is predicted, beside what others have published."""

from __future__ import annotations

from statistics import mean

import pytest

from tests.training.costs.published import EXCEPTIONS, FITTED, HELD_OUT, OVERLAP_FITTED, Row
from training.costs.speed import HELD_OUT_ERROR, MEAN_ERROR


def test_the_rows_that_the_constants_were_fitted_to_are_met_in_the_mean() -> None:
    assert mean(abs(row.error) for row in FITTED) <= MEAN_ERROR


@pytest.mark.parametrize("row", [*FITTED, *OVERLAP_FITTED, *HELD_OUT], ids=lambda row: row.name)
def test_no_published_row_is_missed_by_more_than_is_told(row: Row) -> None:
    assert abs(row.error) <= HELD_OUT_ERROR, f"{row.predicted():,.0f} tokens/s/GPU, published {row.published:,.0f}"


@pytest.mark.parametrize(("why", "row", "between"), EXCEPTIONS, ids=lambda value: str(value)[:40])
def test_what_the_model_does_not_claim_is_off_as_the_page_says(
    why: str, row: Row, between: tuple[float, float]
) -> None:
    assert between[0] <= row.error <= between[1], why
