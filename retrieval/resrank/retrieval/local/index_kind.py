"""A kind of FAISS index, as the string of an index_factory names it: made, and tried before anything depends on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import faiss
import numpy as np

from resrank.core.errors import InvalidInputError

PROBE_DIMENSION = 960
"""Stands for a dimension that nobody knows yet; divisible by what product quantizers ask for."""

_POINTS_PER_CENTROID = 39  # fewer training points than this and FAISS warns (ClusteringParameters)
_CODEBOOK_CENTROIDS = 256  # of a product quantizer with 8 bits

_LISTS = re.compile(r"IVF([0-9]+)([kM]?)")
_BITS = re.compile(r"x([0-9]+)(?![0-9x])")
"""Of a quantizer's codebooks: the last number of PQ48x10 and PRQ2x4x8."""

_FATAL = re.compile(r"(?<![0-9])0+(?![0-9])|(HNSW0*1|NSG0*[12])(?![0-9])")
"""No number is 0 in a kind that works, and no graph has so few links: FAISS divides by them, ends the process with an
assertion or never comes back."""

_UNTRIED = re.compile(r"RQ[0-9]|LSQ[0-9]|ITQ|[0-9kM]\(IVF")
"""What takes seconds to train however little there is to train on; and inverted lists that are looked for in inverted
lists, where FAISS ends the process if one of those is empty, as some are among few vectors."""

_MOST_BITS = 13
"""Larger codebooks can have more centroids than there are vectors to train them on (:func:`training_points`)."""

_TRIED_LISTS = 128  # a coarse quantizer that is an NSG wants more than 100
_TRIED_BITS = 8
_TRIED_POINTS = _CODEBOOK_CENTROIDS  # no more than the centroids of a codebook, which are then copied, not looked for

_kinds: Any = faiss  # its type stubs lack what an index is made of


def new_index(factory: str, dimension: int) -> Any:
    """An empty FAISS index.

    Args:
        factory: FAISS index_factory string.
        dimension: Components of a vector.

    Raises:
        InvalidInputError: FAISS does not know the string, or not for this dimension.
    """
    with _refusing("dense_index", f"FAISS's index_factory refuses {factory!r} for dimension {dimension}"):
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)


def is_flat(factory: str, dimension: int) -> bool:
    """Whether a factory string stands for the index that misses nothing."""
    return isinstance(new_index(factory, dimension), faiss.IndexFlat)


def training_points(index: Any) -> int:
    """How many vectors an index waits for before it is trained."""
    inverted_lists = faiss.try_extract_index_ivf(index)
    centroids = max(_CODEBOOK_CENTROIDS, inverted_lists.nlist if inverted_lists is not None else 0)
    return _POINTS_PER_CENTROID * centroids


def set_search_parameters(index: Any, factory: str, parameters: str) -> None:
    """Sets FAISS's search-time parameters, for instance ``nprobe=16``.

    Raises:
        InvalidInputError: This kind of index has no such parameters.
    """
    space: Any = faiss.ParameterSpace()  # its type stubs take the parameters for a number
    with _refusing("dense_search_parameters", f"FAISS refuses {parameters!r} for {factory!r}"):
        space.set_index_parameters(index, parameters)


@lru_cache(maxsize=64)  # every collection of a catalog asks the same
def require_usable(factory: str, search_parameters: str, dimension: int | None = None) -> None:
    """Refuses a kind of index that FAISS makes but that cannot do what a store does with it, before one relies on it.

    A small index of the kind is trained, filled in two calls as batches come, and searched. That takes some
    milliseconds: it has few lists and small codebooks, and transforms of vectors are given instead of trained. Kinds
    that would take seconds all the same are only made.

    Args:
        factory: FAISS index_factory string.
        search_parameters: FAISS search-time parameters; empty for none.
        dimension: Components of a vector; None where it is not known yet, which leaves out what depends on it.

    Raises:
        InvalidInputError: It cannot (``dense_index``), or not with these parameters (``dense_search_parameters``).
    """
    if _FATAL.search(factory):
        raise InvalidInputError("dense_index", f"a number in {factory!r} is too small for FAISS to work with")
    if max(map(int, _BITS.findall(factory)), default=0) > _MOST_BITS:
        raise InvalidInputError("dense_index", f"codebooks have at most {_MOST_BITS} bits here, got {factory!r}")
    tried = PROBE_DIMENSION if dimension is None else dimension
    new_index(factory, tried)
    small = new_index(_made_small(factory), tried)
    if _UNTRIED.search(factory):
        if search_parameters:
            set_search_parameters(small, factory, search_parameters)
        return
    vectors = np.random.default_rng(0).standard_normal((_TRIED_POINTS, tried), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with faiss_threads(1):
        with _refusing("dense_index", f"FAISS cannot train {factory!r} for dimension {tried}"):
            _hasten(small, dimension_known=dimension is not None)
            if not small.is_trained:
                small.train(vectors)
        with _refusing("dense_index", f"FAISS cannot add vectors to {factory!r} batch by batch"):
            small.add(vectors[:1])
            small.add(vectors[1:8])
        with _refusing("dense_index", f"FAISS cannot search {factory!r}"):
            small.search(vectors[:1], 4)
        if search_parameters:
            set_search_parameters(small, factory, search_parameters)
            with _refusing("dense_search_parameters", f"FAISS cannot search {factory!r} with {search_parameters!r}"):
                small.search(vectors[:1], 4)


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Lets this thread's FAISS calls use so many cores: OpenMP's number of them is a setting of the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _made_small(factory: str) -> str:
    """The same kind with no more lists and bits than are tried."""

    def fewer_lists(found: re.Match[str]) -> str:
        return f"IVF{_TRIED_LISTS if found[2] else min(int(found[1]), _TRIED_LISTS)}"

    return _BITS.sub(lambda found: f"x{min(int(found[1]), _TRIED_BITS)}", _LISTS.sub(fewer_lists, factory))


def _hasten(index: Any, *, dimension_known: bool) -> None:
    """Spares an index, and those that it is made of, what takes long to train and tells nothing.

    Raises:
        RuntimeError: Its training would fail, or its search end the process.
    """
    index = _kinds.downcast_index(index)
    if isinstance(index, _kinds.IndexPreTransform):
        for number in range(index.chain.size()):
            transform = faiss.downcast_VectorTransform(index.chain.at(number))
            if isinstance(transform, faiss.LinearTransform) and not transform.is_trained:
                if dimension_known:
                    _require_trainable(transform)
                _set_identity(transform)
    if isinstance(index, faiss.IndexRefine):
        # Where this is not implemented, a search would throw it across threads, which nobody can catch.
        faiss.downcast_index(index.refine_index).get_distance_computer()
    if hasattr(index, "do_polysemous_training"):
        index.do_polysemous_training = False
    for quantizer in (index, getattr(index, "pq", None)):
        clustering: Any = getattr(quantizer, "cp", None)
        if clustering is not None:
            clustering.niter = clustering.min_points_per_centroid = 1  # the second, lest it warn
    for name in ("index", "base_index", "refine_index", "storage", "quantizer"):
        part = getattr(index, name, None)
        if isinstance(part, faiss.Index):
            _hasten(part, dimension_known=dimension_known)


def _require_trainable(transform: Any) -> None:
    if isinstance(transform, faiss.PCAMatrix) and transform.d_out > transform.d_in:
        raise RuntimeError(f"PCA makes no {transform.d_out} dimensions of {transform.d_in}")
    if isinstance(transform, faiss.OPQMatrix):
        _kinds.ProductQuantizer(transform.d_out, transform.M, _TRIED_BITS)  # as its training does


def _set_identity(transform: Any) -> None:
    faiss.copy_array_to_vector(np.eye(transform.d_out, transform.d_in, dtype=np.float32).ravel(), transform.A)
    if transform.have_bias:
        faiss.copy_array_to_vector(np.zeros(transform.d_out, np.float32), transform.b)
    transform.is_trained = True


@contextmanager
def _refusing(field: str, problem: str) -> Iterator[None]:
    """Makes FAISS's errors one sentence, with the last clause of theirs as the reason."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split()).rpartition(": ")[2]
        raise InvalidInputError(field, f"{problem} ({reason})") from error
