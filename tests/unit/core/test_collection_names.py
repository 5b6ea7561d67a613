from __future__ import annotations

from typing import Any

import pytest

from resrank.core.collection_names import check_collection_name, collection_name
from resrank.core.errors import InvalidInputError


@pytest.mark.parametrize("name", ["a", "0", "docs@v2", "a.b_c-d@e", "x" * 64])
def test_names(name: str) -> None:
    assert check_collection_name("collection", name) == collection_name("collection", name) == name


@pytest.mark.parametrize(
    "name",
    ["x" * 65, ".hidden", "..", "-x", "@x", "Docs", "a/b", "a b", "a\n", "a\0", "docs~2", "straße", " ", 7, None, b"a"],
)
def test_what_is_no_name(name: Any) -> None:
    for check in (check_collection_name, collection_name):
        with pytest.raises(InvalidInputError, match=r"^collection: "):
            check("collection", name)


def test_nothing_means_the_default_collection_where_one_may_say_nothing() -> None:
    assert collection_name("collection", "") == "default"
    with pytest.raises(InvalidInputError, match=r"limit 1 to 64, got 0"):
        check_collection_name("collection", "")
