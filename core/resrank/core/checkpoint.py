"""The checkpoint: ``resrank.json`` and the folder around it.

Everything that the paper leaves open (prompt, norms, gate, temperatures) is a field here and never a constant in
code, so that a checkpoint trained elsewhere is served by its own rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, model_validator

from resrank.core.calibration_file import calibration_of
from resrank.core.errors import CheckpointError
from resrank.core.fusion import DEFAULT_LEXICAL_WEIGHT, CosineMap
from resrank.core.json_lines import parse_json
from resrank.core.limits import MAX_EMBEDDING_DIM
from resrank.core.names import CHECKPOINT_FILE
from resrank.core.strict_json import Sha256, StrictModel, read_fields
from resrank.core.weights import WEIGHTS_FILE, WEIGHTS_INDEX_FILE, read_tensors

ENCODER_DIR = "encoder"
RERANKER_DIR = "reranker"
PROJECTORS_FILE = "projectors.safetensors"
P_IN, P_OUT, SCORE_HEAD = "p_in.weight", "p_out.weight", "score_head.weight"  # what it holds
ADAPTER_KIND = "adapter"
"""What the ``resrank.json`` of an adapter checkpoint says in ``kind``; a full checkpoint's has no such field."""

MAX_NEIGHBORS = 256
"""Most passages that relations compare each one with (K): six times what was found to help."""

_HASH_CHUNK_BYTES = 1 << 20


class Pooling(StrEnum):
    """How the encoder's token states become one vector."""

    MEAN = "mean"
    LAST = "last"
    CLS = "cls"


class Norm(StrEnum):
    """Whether a vector is divided by its length."""

    L2 = "l2"
    NONE = "none"


class Projector(StrEnum):
    """What stands between the encoder's space (d) and the reranker's (h)."""

    IDENTITY = "identity"
    LINEAR = "linear"


class SlotContent(StrEnum):
    """What stands at a passage's one position, before P_in."""

    VECTOR = "vector"
    RELATIONS = "relations"
    BOTH = "both"

    @property
    def has_vectors(self) -> bool:
        """Whether e_i is read there."""
        return self is not SlotContent.RELATIONS

    @property
    def has_relations(self) -> bool:
        """Whether r_i of :mod:`resrank.core.relations` is read there."""
        return self is not SlotContent.VECTOR


LONGEST_TEXT_TOKENS = 32768
"""Of any limit on a passage or a query."""


class EncoderSpec(StrictModel):
    """The Encoder-LLM: text to one vector of dimension d.

    Attributes:
        source: Where the weights came from (hub id, package and version, or folder name); for humans.
        sha256: Digest of the backbone's folder as stored in the checkpoint; an index belongs to it.
        embedding_dim: d, the encoder's hidden size.
        pooling: How token states become one vector.
        embedding_norm: ``l2`` divides the pooled vector by its length, ``none`` keeps it.
        max_passage_tokens: Longest passage, special tokens included.
        max_query_tokens: Longest query as the encoder reads it, special tokens included.
        passage_instruction: Text put before every passage.
        query_instruction: Text put before every query.
        append_eos: Whether the end-of-sequence token is added when the tokenizer does not (last-token pooling).
    """

    source: str
    sha256: Sha256
    embedding_dim: int = Field(ge=1, le=MAX_EMBEDDING_DIM)
    pooling: Pooling
    embedding_norm: Norm = Norm.L2
    max_passage_tokens: int = Field(ge=3, le=LONGEST_TEXT_TOKENS)
    max_query_tokens: int = Field(ge=3, le=LONGEST_TEXT_TOKENS)
    passage_instruction: str = ""
    query_instruction: str = ""
    append_eos: bool = False


class PromptSpec(StrictModel):
    """The text around the query and the passage slots; special tokens written in it are control tokens.

    The sequence is ``before_query + query + before_passages + [slots] + after_passages + EOS``.
    """

    before_query: str
    before_passages: str
    after_passages: str


class SlotSpec(StrictModel):
    """What a slot holds.

    Attributes:
        content: The vector e_i, the relations r_i, or both, [e_i ; r_i].
        neighbors: K of r_i: how many of the passages nearest to the query each one is compared with.
    """

    content: SlotContent = SlotContent.VECTOR
    neighbors: int | None = Field(default=None, ge=1, le=MAX_NEIGHBORS)

    @model_validator(mode="after")
    def _relations_have_neighbors(self) -> Self:
        if self.content.has_relations and self.neighbors is None:
            raise ValueError(f"slots that hold {self.content.value} need slots.neighbors, from 1 to {MAX_NEIGHBORS}")
        if not self.content.has_relations and self.neighbors is not None:
            raise ValueError("slots.neighbors is for slots that hold relations, and slots.content is vector")
        return self

    @property
    def relation_width(self) -> int:
        """Numbers of one r_i, 3K + 4; 0 without relations."""
        return 0 if self.neighbors is None else 3 * self.neighbors + 4

    def width(self, embedding_dim: int) -> int:
        """F, numbers that P_in reads for one passage.

        Args:
            embedding_dim: d.
        """
        return (embedding_dim if self.content.has_vectors else 0) + self.relation_width


VECTOR_SLOTS = SlotSpec()
"""What slots hold where nothing is said."""


class RerankerSpec(StrictModel):
    """The Reranker-LLM: the query's text and one position per passage to hidden states.

    Attributes:
        source: Where the weights came from; for humans.
        sha256: Digest of the backbone's folder as stored in the checkpoint.
        hidden_size: h.
        max_query_tokens: Longest query in the prompt.
        max_passages: N, candidates in one forward pass.
        prompt: The text around query and passages; None for a reranker that reads the slots alone.
        eos_token: The token at whose position the query's state is read; None without a prompt.
        slots: What stands at the passages' positions.
    """

    source: str
    sha256: Sha256
    hidden_size: int = Field(ge=1)
    max_query_tokens: int = Field(ge=1, le=LONGEST_TEXT_TOKENS)
    max_passages: int = Field(ge=1, le=4096)
    prompt: PromptSpec | None
    eos_token: Annotated[str, Field(min_length=1)] | None
    # Left out where it says nothing: a checkpoint from before the field keeps its digest.
    slots: SlotSpec = Field(default=VECTOR_SLOTS, exclude_if=lambda value: value == VECTOR_SLOTS)

    @model_validator(mode="after")
    def _prompt_and_eos_together(self) -> Self:
        if (self.prompt is None) != (self.eos_token is None):
            raise ValueError("prompt and eos_token are given together, or are null together")
        return self


class FusionSpec(StrictModel):
    """How e_i enters the reranker and how its hidden state joins e_i again (x_i, z_i, z_q of ``docs/architecture.md``).

    Attributes:
        projector: ``identity`` needs d = h.
        projectors_sha256: Digest of ``projectors.safetensors``, so that other projectors make another checkpoint;
            None where there is no such file: with ``identity`` and no score residual.
        input_scale: Factor on x_i, so that it has the size of a token embedding.
        state_norm: ``l2`` divides P_out(h) by its length before the sum; without it a hidden state of norm ~50
            drowns a unit-norm embedding.
        residual_gate: g in z_i = g * P_out(h_i) + e_i. 1 is the paper's form, 0 leaves the encoder alone.
        query_residual: Whether e_q is added to the query's state.
        cosine_map: A; None for the identity. No part of the encoder: an index stays valid when it changes.
        score_residual: γ in s_i = A(cos(z_q, z_i)) + γ * w.h_i; 0 for scores without that part, and so without w.
        lexical_weight: What a candidate's share of the best lexical score counts beside s_i, wherever candidates come
            with words. Read by search and client alone.
    """

    projector: Projector
    projectors_sha256: Sha256 | None = None
    input_scale: float = Field(gt=0, le=1e4)
    state_norm: Norm = Norm.L2
    residual_gate: float = Field(ge=-1e3, le=1e3)
    query_residual: bool
    # As for ``slots``: left out where they say nothing.
    cosine_map: CosineMap | None = Field(default=None, exclude_if=lambda value: value is None)
    score_residual: float = Field(default=0.0, ge=0, le=1e3, exclude_if=lambda value: value == 0.0)
    lexical_weight: float = Field(
        default=DEFAULT_LEXICAL_WEIGHT, ge=0, le=10, exclude_if=lambda value: value == DEFAULT_LEXICAL_WEIGHT
    )

    @property
    def has_vector_residual(self) -> bool:
        """Whether hidden states join the vectors; without it the score residual is all that the reranker adds."""
        return self.residual_gate != 0 or self.score_residual == 0

    @property
    def has_projectors_file(self) -> bool:
        """Whether ``projectors.safetensors`` holds anything."""
        return self.projector is Projector.LINEAR or self.score_residual != 0

    @model_validator(mode="after")
    def _query_needs_a_vector(self) -> Self:
        if self.residual_gate == 0 and not self.query_residual:
            raise ValueError("residual_gate 0 without query_residual leaves the query with a zero vector")
        return self

    @model_validator(mode="after")
    def _identity_has_no_file(self) -> Self:
        if not self.has_projectors_file and self.projectors_sha256 is not None:
            raise ValueError("projectors_sha256 is given, but projector is identity and score_residual is 0")
        return self


class HasSections(Protocol):
    """The fields of a full or an adapter checkpoint."""

    @property
    def encoder(self) -> EncoderSpec:
        """The Encoder-LLM's."""
        ...

    @property
    def reranker(self) -> RerankerSpec:
        """The Reranker-LLM's."""
        ...

    @property
    def fusion(self) -> FusionSpec:
        """What joins them."""
        ...


class CheckpointSpec(StrictModel):
    """``resrank.json``: every field of the model, validated as a whole."""

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=200)
    encoder: EncoderSpec
    reranker: RerankerSpec
    fusion: FusionSpec

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        refuse_contradictions(self.encoder, self.reranker, self.fusion)
        return self

    def digest(self) -> str:
        """Hex SHA-256 over the canonical JSON of all fields (which hold the weights' digests)."""
        return canonical_sha256(self.model_dump(mode="json"))


def refuse_contradictions(encoder: EncoderSpec, reranker: RerankerSpec, fusion: FusionSpec) -> None:
    """Holds the sections against each other: identity in place of projectors, what slots need, text left out.

    Raises:
        ValueError: They contradict each other.
    """
    d, h = encoder.embedding_dim, reranker.hidden_size
    if reranker.slots.content.has_relations:
        if not fusion.query_residual:
            raise ValueError("reranker.slots with relations need fusion.query_residual: they are told by e_q")
        if fusion.projector is not Projector.LINEAR:
            raise ValueError("reranker.slots with relations need fusion.projector linear: they are not of size h")
    if fusion.projector is Projector.IDENTITY and d != h:
        raise ValueError(f"fusion.projector identity needs encoder.embedding_dim ({d}) = reranker.hidden_size ({h})")
    if reranker.prompt is None and fusion.has_vector_residual:
        raise ValueError(
            "reranker.prompt is null, so there is no query state: fusion.residual_gate must be 0 and "
            "fusion.score_residual above 0"
        )


def projector_shapes(encoder: EncoderSpec, reranker: RerankerSpec, fusion: FusionSpec) -> dict[str, tuple[int, ...]]:
    """What ``projectors.safetensors`` holds, all of it FP32.

    Returns:
        ``p_in.weight`` [h, F] with the linear projector, ``p_out.weight`` [d, h] with it where states join vectors, and
        ``score_head.weight`` [h], which is w, with a score residual.
    """
    d, h = encoder.embedding_dim, reranker.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    if fusion.projector is Projector.LINEAR:
        shapes[P_IN] = (h, reranker.slots.width(d))
        if fusion.has_vector_residual:
            shapes[P_OUT] = (d, h)
    if fusion.score_residual != 0:
        shapes[SCORE_HEAD] = (h,)
    return shapes


def encoder_identity(spec: CheckpointSpec) -> str:
    """Hex SHA-256 of all that decides a stored vector: weights, pooling, norm, instructions and token limits.

    Two checkpoints with this in common can share an index; any other difference makes vectors that do not belong
    together, even when the dimension is the same.
    """
    return canonical_sha256(spec.encoder.model_dump(mode="json", exclude={"source"}))


def canonical_sha256(fields: dict[str, Any]) -> str:
    """Hex SHA-256 over the one way to write these fields as JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def folder_sha256(folder: Path) -> str:
    """Hex SHA-256 over the sorted relative names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(file_sha256(path).encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of one file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_spec(spec: CheckpointSpec, folder: Path) -> None:
    """Writes ``resrank.json`` into a checkpoint folder."""
    (folder / CHECKPOINT_FILE).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_spec(path: Path) -> CheckpointSpec:
    """Reads and validates one ``resrank.json``.

    Args:
        path: The file, or the checkpoint folder that holds it.

    Raises:
        CheckpointError: The file is missing, is not JSON, or a field is wrong; the message names it.
    """
    file = path / CHECKPOINT_FILE if path.is_dir() else path
    if is_adapter(path):
        raise CheckpointError(
            f"{file}: an adapter checkpoint; make a full one of it first: "
            f"resrank checkpoint merge {file.parent} --out FOLDER"
        )
    try:
        return read_fields(CheckpointSpec, file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; a checkpoint folder holds {CHECKPOINT_FILE}") from None


def is_adapter(path: Path) -> bool:
    """Whether a ``resrank.json``, or the one of a folder, calls itself an adapter checkpoint's; never raises."""
    file = path / CHECKPOINT_FILE if path.is_dir() else path
    try:
        fields = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("kind") == ADAPTER_KIND


def validate_folder(folder: Path, *, verify_hashes: bool = True) -> CheckpointSpec:
    """Reads a checkpoint and checks that everything it promises is there.

    Args:
        folder: The checkpoint folder.
        verify_hashes: Whether the weights' digests are computed again (seconds per GB).

    Raises:
        CheckpointError: Something is missing, is a pickle, or differs from ``resrank.json``.
    """
    spec = read_spec(folder)
    for name, expected in ((ENCODER_DIR, spec.encoder.sha256), (RERANKER_DIR, spec.reranker.sha256)):
        backbone = folder / name
        refuse_missing_files(backbone, reads_text=name == ENCODER_DIR or spec.reranker.prompt is not None)
        if not any((backbone / weights).is_file() for weights in (WEIGHTS_FILE, WEIGHTS_INDEX_FILE)):
            raise CheckpointError(f"{backbone}: no {WEIGHTS_FILE} (only safetensors are read, never pickles)")
        if verify_hashes and (found := folder_sha256(backbone)) != expected:
            raise CheckpointError(f"{backbone}: sha256 is {found}, but {CHECKPOINT_FILE} says {expected}")
    validate_projectors(folder, spec, verify_hash=verify_hashes)
    calibration_of(folder, spec.digest())
    return spec


def refuse_missing_files(backbone: Path, *, reads_text: bool = True) -> None:
    """Checks that what every backbone has beside its weights is there.

    Args:
        backbone: Its folder.
        reads_text: Whether it needs a tokenizer.

    Raises:
        CheckpointError: A file is missing.
    """
    for required in ("config.json", *(("tokenizer.json",) if reads_text else ())):
        if not (backbone / required).is_file():
            raise CheckpointError(f"{backbone / required}: missing from the checkpoint")


def validate_projectors(folder: Path, spec: HasSections, *, verify_hash: bool) -> None:
    """Checks that ``projectors.safetensors`` is there if and only if it is wanted, and is the right one.

    Args:
        folder: The checkpoint's.
        spec: Its fields, of a full or an adapter checkpoint.
        verify_hash: Whether the file's digest is computed again.

    Raises:
        CheckpointError: It is not, or holds other tensors than the fields ask for.
    """
    file, fusion = folder / PROJECTORS_FILE, spec.fusion
    if fusion.has_projectors_file != file.is_file():
        wanted = "missing" if fusion.has_projectors_file else "present"
        raise CheckpointError(
            f"{file}: {wanted}, but fusion.projector is {fusion.projector.value} and fusion.score_residual "
            f"{fusion.score_residual:g}"
        )
    if not file.is_file():
        return
    if verify_hash and fusion.projectors_sha256 and (found := file_sha256(file)) != fusion.projectors_sha256:
        raise CheckpointError(f"{file}: sha256 is {found}, but {CHECKPOINT_FILE} says {fusion.projectors_sha256}")
    shapes = {name: tensor.shape for name, tensor in read_tensors(file).items()}
    expected = projector_shapes(spec.encoder, spec.reranker, fusion)
    if shapes != expected:
        raise CheckpointError(f"{file}: holds {_readable(shapes)}, not {_readable(expected)}")
    if verify_hash and fusion.projectors_sha256 is None:  # else the checkpoint's digest would say nothing of them
        raise CheckpointError(f"{folder / CHECKPOINT_FILE}: fusion.projectors_sha256 is missing, of {file.name}")


def _readable(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"
