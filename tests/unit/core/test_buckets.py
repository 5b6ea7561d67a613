"""Bucket lengths: which a row is padded to, how little that wastes, and their text form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.buckets import Buckets, bucket_length, bucket_series, format_buckets, parse_buckets
from resrank.core.errors import InvalidInputError

steps = st.sampled_from([8, 16])
ascending = st.sets(st.integers(1, 4096), min_size=1, max_size=20).map(lambda lengths: tuple(sorted(lengths)))


def test_the_series_of_a_usual_encoder() -> None:
    # By hand: multiples of 8 until a quarter of the row is more than 8, then the largest multiple b with
    # (b - (previous + 1)) / b <= 1/4, and at the end the limit itself.
    assert bucket_series(8, 256, step=8) == (8, 16, 24, 32, 40, 48, 64, 80, 104, 136, 176, 232, 256)


@given(first=st.integers(1, 600), extra=st.integers(0, 1024), step=steps)
def test_no_row_pads_more_than_a_step_or_a_quarter(first: int, extra: int, step: int) -> None:
    last = first + extra
    series = bucket_series(first, last, step=step)
    for length in range(first, last + 1):
        padded = min(bucket for bucket in series if bucket >= length)
        assert padded - length < step or 4 * (padded - length) <= padded


@given(first=st.integers(1, 600), extra=st.integers(0, 4096), step=steps)
def test_the_series_ascends_by_multiples_to_the_limit(first: int, extra: int, step: int) -> None:
    series = bucket_series(first, first + extra, step=step)
    assert series[-1] == first + extra
    assert sorted(set(series)) == list(series)
    assert all(length % step == 0 for length in series[:-1])


@given(first=st.integers(1, 64), last=st.integers(64, 32768), step=steps)
def test_buckets_stay_few(first: int, last: int, step: int) -> None:
    # Growth by a third: 3 steps before it starts, log(32768 / 32) / log(4 / 3) = 24 from there on, rounding beside.
    assert len(bucket_series(first, last, step=step)) <= 32


@given(buckets=ascending, data=st.data())
def test_a_row_takes_the_smallest_bucket_that_holds_it(buckets: tuple[int, ...], data: st.DataObject) -> None:
    length = data.draw(st.integers(1, buckets[-1]))
    assert bucket_length(length, buckets) == min(bucket for bucket in buckets if bucket >= length)


def test_a_row_beyond_the_last_bucket_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        bucket_length(65, (16, 64), field="QUERY")
    assert str(caught.value) == "QUERY: longer than the longest bucket (limit 64, got 65)"


@given(buckets=ascending)
def test_the_text_form_reads_back(buckets: tuple[int, ...]) -> None:
    assert parse_buckets(format_buckets(buckets), field="token_buckets") == buckets


def test_the_text_form_is_what_a_config_holds() -> None:
    assert format_buckets((16, 32, 64)) == "16,32,64"


@pytest.mark.parametrize("text", ["", "16,", "16;32", "16,x", "1.5", "0,16", "-8,16", "32,16", "16,16"])
def test_a_wrong_text_is_refused_with_the_parameters_name(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^token_buckets: .*as in 16,32,64$"):
        parse_buckets(text, field="token_buckets")


@pytest.mark.parametrize("wrong", [(), (0, 8), (16, 8), (8, 8)])
def test_every_axis_is_checked(wrong: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"^sequence: "):
        Buckets(passage_tokens=(8,), query_tokens=(8,), sequence=wrong, candidates=(10,))
