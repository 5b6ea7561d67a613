from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from resrank.core.passage import content_sha256, encoder_text

CONTENT = st.tuples(st.text(max_size=5), st.text(max_size=5), st.dictionaries(st.text(max_size=2), st.text(max_size=2)))


def test_title_and_text_are_joined_by_one_space() -> None:
    assert encoder_text("Lava", "is hot.") == "Lava is hot."
    assert encoder_text("", "is hot.") == "is hot."
    assert encoder_text("Lava", "") == "Lava"


def test_the_digest_is_sha256_over_length_prefixed_parts() -> None:
    parts = (b"Lava", "heiß".encode(), b"a", b"1", b"b", b"2")
    prefixed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    assert content_sha256("Lava", "heiß", {"b": "2", "a": "1"}) == hashlib.sha256(prefixed).digest()


@given(CONTENT, CONTENT)
def test_digests_are_equal_only_for_equal_content(
    first: tuple[str, str, dict[str, str]], second: tuple[str, str, dict[str, str]]
) -> None:
    assert (content_sha256(*first) == content_sha256(*second)) == (first == second)
