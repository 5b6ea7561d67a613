"""The families of backbones whose TensorRT engines are checked, and in which role.

A strongly typed graph has its precision decided operator by operator, for operators that were looked at. So families
are listed, each with a tiny random model in the tests that is exported, compared and built in every precision. The CPU
engines take the torch model's fp32 graph as it is and need no list: there the parity gate decides alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resrank.core.errors import ExportError
from resrank.core.names import Model

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig

_BOTH = frozenset((Model.ENCODER, Model.RERANKER))
_ENCODER = frozenset((Model.ENCODER,))

SUPPORTED: Mapping[str, frozenset[Model]] = {
    "llama": _BOTH,
    "qwen2": _BOTH,
    "qwen3": _BOTH,
    "mistral": _BOTH,
    "bert": _ENCODER,
    "mpnet": _ENCODER,
    "xlm-roberta": _ENCODER,
    "modernbert": _ENCODER,
}
"""The ``model_type`` of a backbone's ``config.json`` to the engines it can be."""


def require_supported(config: PretrainedConfig | Mapping[str, Any], role: Model) -> None:
    """Refuses a backbone whose family has no checked TensorRT engine in a role.

    Args:
        config: Of the backbone: the loaded one, or what ``config.json`` holds.
        role: ``encoder`` or ``reranker``.

    Raises:
        ExportError: The message names what was found, what is supported and what to do.
    """
    family = config.get("model_type") if isinstance(config, Mapping) else config.model_type
    roles = SUPPORTED.get(family, frozenset()) if isinstance(family, str) else frozenset()
    if role in roles:
        return
    instead = " or ".join(sorted(other.value for other in roles))
    known = (
        f"TensorRT engines of it are checked only as {instead}" if roles else "TensorRT engines of it are not checked"
    )
    families = ", ".join(name for name, of_family in SUPPORTED.items() if role in of_family)
    raise ExportError(
        f"{role.value}: the backbone's model_type is {family!r}, and {known}; take a backbone of {families}, or export "
        "with --runtime cpu or torch"
    )
