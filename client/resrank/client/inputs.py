"""The rules on inputs that a client can know, checked before anything is sent. The servers check them again."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.documents import text_bytes
from resrank.core.errors import InvalidInputError, Place
from resrank.core.limits import MAX_LIST_CANDIDATES, MAX_QUERY_BYTES
from resrank.core.names import Tensor
from resrank.core.truncation import Truncation
from resrank.core.vectors import first_bad_vector, vector_problem

Float16 = NDArray[np.float16]


def encode_query(query: str) -> bytes:
    """A query as UTF-8.

    Raises:
        InvalidInputError: No string, empty, only whitespace, over ``MAX_QUERY_BYTES`` or not valid Unicode.
    """
    return _encode(Place(Tensor.QUERY), query, MAX_QUERY_BYTES)


def encode_texts(tensor: Tensor, texts: Sequence[str], max_bytes: int) -> list[bytes]:
    """Texts as UTF-8.

    Args:
        tensor: What errors call the list; the text's index follows, ``PASSAGES[3]``.
        texts: At least one.
        max_bytes: Longest accepted, in UTF-8 bytes.

    Raises:
        InvalidInputError: No list, no texts, or the first one that is no string, empty, only whitespace, too long or
            not valid Unicode.
    """
    check_list(tensor.value, texts)
    if tensor is Tensor.PASSAGES and len(texts) > MAX_LIST_CANDIDATES:
        raise InvalidInputError(tensor.value, "too many in one call", limit=MAX_LIST_CANDIDATES, value=len(texts))
    return [_encode(Place(tensor, (index,)), text, max_bytes) for index, text in enumerate(texts)]


def check_list(field: str, texts: Any) -> None:
    """Refuses what is no list of texts, whose places could be named; of its elements nothing is said.

    Args:
        field: What errors call it.
        texts: What was given.

    Raises:
        InvalidInputError: It is none, or there is nothing in it.
    """
    if isinstance(texts, str | bytes):
        raise InvalidInputError(field, "must be a list of strings, not one string")
    # Of a set, or of what can be read once only, no place in it could be named to the caller.
    if isinstance(texts, Mapping | Set) or not _has_length(texts):
        raise InvalidInputError(field, f"must be a list of strings, not {type(texts).__name__}")
    if len(texts) == 0:
        raise InvalidInputError(field, "no texts", limit=1, value=0)


def _has_length(texts: Any) -> bool:
    try:
        return len(texts) >= 0
    except TypeError:  # also an array without a dimension
        return False


def whole_number(field: str, value: Any) -> int:
    """A number of things, of Python's or NumPy's whole numbers.

    Raises:
        InvalidInputError: It is none; truth values are none either.
    """
    try:
        if not isinstance(value, bool | np.bool_):
            return operator.index(value)
    except TypeError:
        pass
    raise InvalidInputError(field, f"must be a whole number, not {type(value).__name__}")


def truth(field: str, value: Any) -> bool:
    """Yes or no, of Python's or NumPy's.

    Raises:
        InvalidInputError: It is neither; "no" and 0 would be taken for one of them.
    """
    if not isinstance(value, bool | np.bool_):
        raise InvalidInputError(field, f"must be True or False, not {type(value).__name__}")
    return bool(value)


def truncation(value: Any) -> Truncation | None:
    """Whether and how texts are cut; None for not at all.

    Raises:
        InvalidInputError: It is neither yes, no nor a :class:`~resrank.core.truncation.Truncation`.
    """
    return value if isinstance(value, Truncation) else Truncation.of(truth("truncate", value))


def _encode(field: Place, text: Any, max_bytes: int) -> bytes:
    encoded = text_bytes(field, text)
    if len(encoded) > max_bytes:
        raise InvalidInputError(field, "too many bytes", limit=max_bytes, value=len(encoded))
    return encoded


def half_precision(candidates: NDArray[Any]) -> Float16:
    """Candidate embeddings as they travel.

    Args:
        candidates: FP16 or FP32 [N, d].

    Returns:
        Contiguous little-endian FP16 [N, d]; the input itself when it is that already.

    Raises:
        InvalidInputError: No such array, no rows, or the first row with NaN, Inf, a number beyond FP16, or only zeros.
    """
    name = Tensor.CANDIDATES.value
    if not isinstance(candidates, np.ndarray):
        raise InvalidInputError(name, f"must be a NumPy array, not {type(candidates).__name__}")
    if candidates.dtype.newbyteorder("=") not in (np.float16, np.float32):
        raise InvalidInputError(name, "wrong dtype", limit="float16 or float32", value=candidates.dtype)
    if candidates.ndim != 2:
        raise InvalidInputError(name, "wrong number of dimensions, must be [N, d]", limit=2, value=candidates.ndim)
    if candidates.shape[0] == 0:
        raise InvalidInputError(name, "no candidates", limit=1, value=0)
    if candidates.shape[0] > MAX_LIST_CANDIDATES:
        raise InvalidInputError(name, "too many in one call", limit=MAX_LIST_CANDIDATES, value=candidates.shape[0])
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(candidates, dtype="<f2")
    if (index := first_bad_vector(halves)) is not None:
        given = candidates[index]
        raise InvalidInputError(
            Place(name, index),
            vector_problem(given)
            or "does not fit half precision, whose numbers go from 6e-08 to 65504: its largest is "
            f"{float(np.abs(given).max()):g}",
        )
    return halves


def check_dimension(candidates: Float16, dimension: int) -> None:
    """Refuses embeddings of another dimension than the reranker reads.

    Raises:
        InvalidInputError: They differ.
    """
    if candidates.shape[1] != dimension:
        raise InvalidInputError(Tensor.CANDIDATES.value, "wrong dimension", limit=dimension, value=candidates.shape[1])
