from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from resrank.core.metadata import MetadataValue
from resrank.core.passage import content_sha256, encoder_text

VALUES = st.one_of(
    st.text(max_size=2),
    st.sampled_from([0.0, 1.0, 0.5]),
    st.booleans(),
    st.lists(st.text(max_size=1), max_size=2).map(tuple),
)
CONTENT = st.tuples(st.text(max_size=3), st.text(max_size=3), st.dictionaries(st.text(max_size=2), VALUES, max_size=3))


def test_title_and_text_are_joined_by_one_space() -> None:
    assert encoder_text("Lava", "is hot.") == "Lava is hot."
    assert encoder_text("", "is hot.") == "is hot."
    assert encoder_text("Lava", "") == "Lava"


def test_the_digest_is_sha256_over_length_prefixed_parts() -> None:
    parts = (b"Lava", "heiß".encode(), b"a", b"1", b"b", b"2")
    prefixed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    assert content_sha256("Lava", "heiß", {"b": "2", "a": "1"}) == hashlib.sha256(prefixed).digest()


def test_what_is_no_string_follows_as_json() -> None:
    """As an odd part, so that no content of strings alone, which come in pairs, has the same digest."""
    parts = (b"Lava", b"hot", b"a", b"1", '{"b": ["é"], "n": 2.0, "t": true}'.encode())
    prefixed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    metadata: dict[str, MetadataValue] = {"t": True, "n": 2.0, "b": ("é",), "a": "1"}
    assert content_sha256("Lava", "hot", metadata) == hashlib.sha256(prefixed).digest()


@given(CONTENT, CONTENT)
def test_digests_are_equal_only_for_equal_content(
    first: tuple[str, str, dict[str, MetadataValue]], second: tuple[str, str, dict[str, MetadataValue]]
) -> None:
    typed = [
        (*content[:2], {name: (type(value), value) for name, value in content[2].items()})
        for content in (first, second)
    ]
    assert (content_sha256(*first) == content_sha256(*second)) == (typed[0] == typed[1])
