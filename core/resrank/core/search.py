"""What a search is asked for: the same words for client, ``search`` model and command."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from resrank.core.collection_names import collection_name
from resrank.core.errors import InvalidInputError
from resrank.core.fail_open import OnFailure
from resrank.core.filters import Filter
from resrank.core.fusion import Fusion, check_lexical_weight
from resrank.core.limits import MAX_MESSAGE_RECORDS

DEFAULT_K = 10
DEFAULT_CANDIDATES = 100

_Choice = TypeVar("_Choice", bound=StrEnum)


class SearchMode(StrEnum):
    """How candidates are found."""

    HYBRID = "hybrid"  # both ways, fused
    DENSE = "dense"  # by embedding
    LEXICAL = "lexical"  # by words


@dataclass(frozen=True)
class SearchOptions:
    """A search but for its query; checked when it is made.

    Attributes:
        k: Passages to return, 1 to ``candidates``.
        candidates: Passages to retrieve and rerank, at most ``MAX_MESSAGE_RECORDS``.
        mode: How candidates are found.
        fusion: How ``hybrid`` joins both lists.
        rerank: Whether the reranker orders the candidates.
        lexical_weight: w of BM25 (:mod:`resrank.core.fusion`), 0 to 10; None for the checkpoint's own. Without effect
            on ``dense``, which looks for no words.
        on_failure: What is wanted where the models behind the search do not answer.
        collection: Whose passages are searched, by name or alias; empty for the default one's.
        filter: What the metadata of passages must meet to be found; None for nothing.
        include_metadata: Whether the metadata is wanted.

    Raises:
        InvalidInputError: A value is out of its range.
    """

    k: int = DEFAULT_K
    candidates: int = DEFAULT_CANDIDATES
    mode: SearchMode = SearchMode.HYBRID
    fusion: Fusion = Fusion.WEIGHTED
    rerank: bool = True
    lexical_weight: float | None = None
    on_failure: OnFailure = OnFailure.ERROR
    collection: str = ""
    filter: Filter | None = None
    include_metadata: bool = False

    def __post_init__(self) -> None:
        for name in ("k", "candidates"):
            value = getattr(self, name)
            if value < 1:
                raise InvalidInputError(name, "too small", limit=1, value=value)
            if value > MAX_MESSAGE_RECORDS:
                raise InvalidInputError(name, "too large", limit=MAX_MESSAGE_RECORDS, value=value)
        if self.k > self.candidates:
            raise InvalidInputError("k", "more results than candidates", limit=self.candidates, value=self.k)
        if self.lexical_weight is not None:
            object.__setattr__(self, "lexical_weight", check_lexical_weight(self.lexical_weight))
        collection_name("collection", self.collection)

    @property
    def needs_embedding(self) -> bool:
        """Whether candidates are found by the query's vector."""
        return self.mode is not SearchMode.LEXICAL

    @property
    def may_be_by_words_alone(self) -> bool:
        """Whether the search is answered even where no model is: words are looked up in the index."""
        return self.on_failure is OnFailure.RETRIEVAL_ORDER and self.mode is not SearchMode.DENSE


def choice(field: str, kind: type[_Choice], value: str) -> _Choice:
    """The member of an enumeration that a text names.

    Args:
        field: What errors call it.
        kind: The enumeration.
        value: A member or its value.

    Raises:
        InvalidInputError: There is none of that name.
    """
    try:
        return kind(value)
    except ValueError:
        raise InvalidInputError(field, "unknown", limit=" or ".join(kind), value=value) from None
