"""The buckets that a model's config names, where it does."""

from __future__ import annotations

from collections.abc import Mapping

from resrank.core.buckets import parse_buckets
from resrank.core.names import Parameter


def read_buckets(parameters: Mapping[str, str] | None, name: Parameter) -> tuple[int, ...]:
    """Reads one parameter.

    Args:
        parameters: Of a model's config; None for a config without any.
        name: ``token_buckets``, ``sequence_buckets`` or ``candidate_buckets``.

    Returns:
        Ascending lengths; none where the parameter is not set, and nothing is padded.

    Raises:
        InvalidInputError: The parameter is no list of ascending lengths.
    """
    return parse_buckets(parameters[name], field=name) if parameters and name in parameters else ()
