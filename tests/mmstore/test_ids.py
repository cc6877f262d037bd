"""Ids, look-up and rows in blocks on their own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmstore import InvalidIds
from mmstore.ids import (
    IdIndex,
    block_rows,
    decode_ids,
    encode_ids,
    encode_lookup,
    first_duplicate,
    pair_keys,
    runs,
    spans,
)

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6
)


@given(st.lists(TEXT))
def test_ids_survive_encoding(ids: list[str]) -> None:
    assert decode_ids(encode_ids(ids)).tolist() == ids
    assert (
        encode_ids(iter(ids)).tolist()
        == encode_lookup(iter(ids)).tolist()
        == [text.encode() for text in ids]
    )


@given(st.lists(TEXT), st.lists(TEXT))
def test_the_index_finds_rows_as_a_dictionary_does(ids: list[str], wanted: list[str]) -> None:
    ids = list(dict.fromkeys(ids))
    rows = {text: row for row, text in enumerate(ids)}
    index = IdIndex.build(encode_ids(ids), "ids")
    queries = ids[::-1] + wanted
    assert index.find(encode_lookup(queries)).tolist() == [rows.get(text, -1) for text in queries]


@given(st.lists(st.sampled_from("abcdef"), max_size=8))
def test_the_first_repetition_is_named(ids: list[str]) -> None:
    expected = next(
        ((ids.index(text), row) for row, text in enumerate(ids) if text in ids[:row]), None
    )
    found = first_duplicate(encode_ids(ids))
    assert (found is None) == (expected is None)
    if found is not None:
        assert found == expected


@given(st.lists(st.tuples(TEXT, TEXT), unique=True))
def test_different_pairs_have_different_keys(pairs: list[tuple[str, str]]) -> None:
    users, items = encode_ids([user for user, _ in pairs]), encode_ids([item for _, item in pairs])
    assert first_duplicate(pair_keys(users, items)) is None


def test_bytes_that_are_not_utf8_are_said() -> None:
    with pytest.raises(InvalidIds, match="not UTF-8"):
        decode_ids(np.array([b"\xff"]))
    with pytest.raises(InvalidIds, match=r"expected \(n,\)"):
        encode_ids(np.array([[b"a"]]))


@given(st.lists(st.integers(0, 60), unique=True), st.integers(0, 5), st.integers(1, 20))
def test_runs_cover_all_rows_once(rows: list[int], gap: int, span: int) -> None:
    ordered = np.array(sorted(rows), np.int64)
    pieces = [ordered[i:j] for i, j in runs(ordered, max_gap=gap, max_span=span)]
    assert [row for piece in pieces for row in piece] == ordered.tolist()
    for piece in pieces:
        assert piece[-1] - piece[0] < span and (np.diff(piece) <= gap + 1).all()
    exact = [ordered[i:j] for i, j in runs(ordered)]
    assert all(piece[-1] - piece[0] == len(piece) - 1 for piece in exact)
    assert all(after[0] > before[-1] + 1 for before, after in itertools.pairwise(exact)), (
        "runs are maximal"
    )


def test_blocks_and_spans() -> None:
    assert list(spans(5, 2)) == [(0, 2), (2, 4), (4, 5)] and list(spans(0, 2)) == []
    assert block_rows(10, 95) == 9 and block_rows(1000, 95) == 1 and block_rows(0, 95) == 95
