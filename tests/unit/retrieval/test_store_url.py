from __future__ import annotations

import os
from pathlib import Path

import pytest

from resrank.core.errors import InvalidInputError
from resrank.retrieval.store_url import StoreUrl


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://resrank:s3cret@db:5432/search", "postgresql://resrank:***@db:5432/search"),
        (
            "postgresql://resrank:s3cret%40%2F@[::1]/x?sslmode=require",
            "postgresql://resrank:***@[::1]/x?sslmode=require",
        ),
        ("postgresql://:s3cret@db/x", "postgresql://:***@db/x"),
        ("postgresql://db/x?user=u&password=s3cret&port=1", "postgresql://db/x?user=u&password=***&port=1"),
        ("postgresql://db/x?sslpassword=s3cret", "postgresql://db/x?sslpassword=***"),
        ("postgresql://db/x?port=1&p%61ssword=s3cret", "postgresql://db/x?port=1&p%61ssword=***"),
        ("postgresql://u:s3cret@one:1,[::2]:2,three/x", "postgresql://u:***@one:1,[::2]:2,three/x"),
        ("milvus://root:s3cret@host:19530/db", "milvus://root:***@host:19530/db"),
        ("postgresql:///x?host=/var/run", "postgresql:///x?host=/var/run"),
        ("local:///data/my%20index", "/data/my index"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    parsed = StoreUrl.parse(url)
    assert str(parsed) == shown
    assert "s3cret" not in repr(parsed)
    assert parsed.secret == url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@more@db/x",
        "postgresql://u:s3cret/more@db/x",
        "postgresql://u:s3cret?more@db/x",
        "postgresql://u:s3cret#more@db/x",
        "postgresql://u:s3cret more@db/x",
        "u:s3cret@db",
        "postgresql://u:s3cret",
        "postgresql://u:s3cret/db",
        "",
        "://s3cret",
        "/data/index",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^store: ") as raised:
        StoreUrl.parse(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["postgresql:/u:s3cret@db/x", "host=db password=s3cret", "HOST=db PASSWORD = s3cret", "local:///a%00b"]
)
def test_what_is_neither_folder_nor_url_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^store: "):
        StoreUrl.read(text)


def test_a_local_store_is_an_absolute_folder() -> None:
    assert StoreUrl.parse("local:///data/index").folder == Path("/data/index")
    assert StoreUrl.local(Path("index")).folder == Path.cwd() / "index"
    assert StoreUrl.parse("local:///my%20index").folder == Path("/my index")
    for odd in (b"/a b/@%?#", b"/not-utf8-\xff"):
        assert StoreUrl.parse(StoreUrl.local(Path(os.fsdecode(odd))).secret).folder == Path(os.fsdecode(odd))
    with pytest.raises(InvalidInputError, match="absolute folder"):
        StoreUrl.parse("local://data/index")
