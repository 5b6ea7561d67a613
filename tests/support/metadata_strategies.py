"""Metadata and filters as hypothesis draws them: few fields and values, so that filters keep some records of many."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from resrank.core.filters import AllOf, AnyOf, Comparison, Filter, Not, Operator, Scalar
from resrank.core.metadata import FieldType, MetadataValue

STRINGS = ["de", "en", "", "Ärger", "zu", "2020", 'it\'s "so"']
NUMBERS = [-1.5, 0.0, 1999.0, 2020.0, 2020.25, 1e300]

VALUES: Mapping[str, st.SearchStrategy[MetadataValue]] = {
    "lang": st.sampled_from(STRINGS),
    "year": st.sampled_from(NUMBERS),
    "draft": st.booleans(),
    "tags": st.lists(st.sampled_from(STRINGS), max_size=3).map(tuple),
    "a name": st.sampled_from(STRINGS),
}
TYPES = {
    "lang": FieldType.STRING,
    "year": FieldType.NUMBER,
    "draft": FieldType.BOOL,
    "tags": FieldType.STRINGS,
    "a name": FieldType.STRING,
}

metadata: st.SearchStrategy[dict[str, MetadataValue]] = st.fixed_dictionaries({}, optional=dict(VALUES))


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    """A comparison that makes sense for its field."""
    name = draw(st.sampled_from(sorted(TYPES)))
    kind = TYPES[name]
    scalars: st.SearchStrategy[Scalar] = {
        FieldType.NUMBER: st.sampled_from(NUMBERS),
        FieldType.BOOL: st.booleans(),
    }.get(kind, st.sampled_from(STRINGS))
    ordered = kind in (FieldType.NUMBER, FieldType.STRING)
    operator = draw(st.sampled_from(list(Operator) if ordered else ["eq", "ne", "in", "exists"]))
    if operator == Operator.EXISTS:
        return Comparison(name, Operator.EXISTS)
    size = draw(st.integers(1, 3)) if operator == Operator.IN else 1
    return Comparison(name, Operator(operator), tuple(draw(scalars) for _ in range(size)))


def _joined(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(several.map(AllOf), several.map(AnyOf), inner.map(Not))


filters: st.SearchStrategy[Filter] = st.recursive(comparisons(), _joined, max_leaves=5)
