"""Adapter checkpoints: written after training, and merged with their base models into full ones."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from resrank.core.adapter import (
    CARD_FILE,
    LORA_CONFIG_FILE,
    LORA_WEIGHTS_FILE,
    AdaptedEncoderSpec,
    AdaptedRerankerSpec,
    AdapterSpec,
    has_whole_weights,
    read_lora,
    refuse_foreign_lora,
    validate_adapter,
    was_trained,
    write_adapter_spec,
)
from resrank.core.calibration_file import calibration_of
from resrank.core.checkpoint import (
    ENCODER_DIR,
    PROJECTORS_FILE,
    RERANKER_DIR,
    CheckpointSpec,
    EncoderSpec,
    RerankerSpec,
    file_sha256,
    folder_sha256,
    is_adapter,
    validate_folder,
    write_spec,
)
from resrank.core.errors import CheckpointError
from resrank.core.names import CALIBRATION_FILE
from resrank.core.progress import Notify
from resrank.core.weights import WEIGHTS_FILE, WEIGHTS_INDEX_FILE, backbone_tensors, weights_sha256
from resrank.export.backbone_files import keep_layers, load_backbone, resolve_source
from resrank.export.backbones import PACKAGED_BACKBONES, materialize
from resrank.export.cache import cache_folder
from resrank.export.shipped_checkpoints import DEFAULT, shipped_checkpoint
from resrank.export.written_aside import make_once, refuse_existing, written_aside
from resrank.model.quiet import quiet_transformers

_AdaptedSpec = AdaptedEncoderSpec | AdaptedRerankerSpec
# Config and tokenizer, in whatever files transformers wrote them: never weights, pickles or programs.
_KEPT_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_PRODUCT_ROWS = 64  # of W at a time, so that they stay in the second-level cache: a third less time than all at once


@dataclass(frozen=True)
class BackboneAdapter:
    """What PEFT learned about one backbone.

    Attributes:
        config: ``LoraConfig.to_dict()``, taken after PEFT has put the adapter into the model.
        tensors: ``get_peft_model_state_dict`` of the PEFT model over the ``AutoModel`` backbone:
            ``base_model.model.….lora_A.weight`` [r, in] and ``….lora_B.weight`` [out, r].
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class WholeWeights:
    """All weights of a backbone, which are then shipped as they are: of a small one without a base.

    Attributes:
        tensors: Under the names of transformers' base model.
    """

    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class AdaptedBackbone:
    """A backbone as an adapter checkpoint has it, which further training left alone.

    Attributes:
        folder: ``encoder/`` or ``reranker/`` of that checkpoint.
        fields: What its ``resrank.json`` says of it.
    """

    folder: Path
    fields: AdaptedEncoderSpec | AdaptedRerankerSpec


def write_adapter(
    out: Path,
    *,
    base: Path,
    spec: CheckpointSpec,
    encoder: BackboneAdapter | WholeWeights | AdaptedBackbone | None,
    reranker: BackboneAdapter | WholeWeights | AdaptedBackbone | None,
    projectors: Mapping[str, Tensor],
    card: str,
) -> AdapterSpec:
    """Writes what training changed about a checkpoint.

    Adapters are stored in fp16: half the size of fp32, and what is rounded is a small update (measured on MiniLM with
    random adapters: cosines move by 2e-5, with bf16 by 1e-4). Projectors are stored in fp32. What is measured and
    served is this, merged, and never the weights that it was rounded from. Whole weights are stored in fp32.

    Args:
        out: The folder to make; must not exist yet.
        base: The full checkpoint that training started from.
        spec: The trained model's fields: those of ``base``, but for the name and for what training set otherwise
            (gate, norms, limits). Its digests are not read.
        encoder: None where the encoder was frozen, and is its own base. One that was frozen and had been trained before
            comes as it was then, so that the base is still the one that can be fetched.
        reranker: Likewise.
        projectors: The tensors of :func:`resrank.core.checkpoint.projector_shapes`.
        card: The model card, in Markdown.

    Returns:
        The fields, as written to ``resrank.json``.

    Raises:
        CheckpointError: ``out`` exists, an adapter is not plain LoRA or does not fit the base, or a number is not
            finite in the type it is stored in. ``out`` is either complete afterwards or not there.
    """
    with written_aside(out) as partial:
        for name, adapter, source in (
            (ENCODER_DIR, encoder, spec.encoder.source),
            (RERANKER_DIR, reranker, spec.reranker.source),
        ):
            if isinstance(adapter, AdaptedBackbone):
                shutil.copytree(adapter.folder, partial / name)
                continue
            copy_without_weights(base / name, partial / name)
            if isinstance(adapter, WholeWeights):
                save_weights(adapter.tensors, partial / name)
            elif adapter is not None:
                _write_lora(adapter, partial / name, source, base / name)
        if projectors:
            stored = {name: finite(name, tensor, torch.float32) for name, tensor in projectors.items()}
            save_file(stored, partial / PROJECTORS_FILE)
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
        written = AdapterSpec(
            name=spec.name,
            encoder=AdaptedEncoderSpec(
                **spec.encoder.model_dump(exclude={"source", "sha256"}), **_origin(encoder, spec.encoder, base, partial)
            ),
            reranker=AdaptedRerankerSpec(
                **spec.reranker.model_dump(exclude={"source", "sha256"}),
                **_origin(reranker, spec.reranker, base, partial),
            ),
            fusion=spec.fusion.model_copy(
                update={"projectors_sha256": file_sha256(partial / PROJECTORS_FILE) if projectors else None}
            ),
        )
        write_adapter_spec(written, partial)
        validate_adapter(partial)
    return written


def join_adapter(encoder: Path, reranker: Path, out: Path) -> AdapterSpec:
    """Makes an adapter checkpoint of the encoder of one and of all else of a full checkpoint with a drawn decoder.

    Args:
        encoder: The adapter checkpoint.
        reranker: The full checkpoint; its encoder is that of ``encoder``, merged.
        out: The folder to make; must not exist yet.

    Raises:
        CheckpointError: One of them is not valid, or ``out`` exists.
    """
    adapted, spec = validate_adapter(encoder), validate_folder(reranker, verify_hashes=False)
    return write_adapter(
        out,
        base=reranker,
        spec=spec,
        encoder=AdaptedBackbone(encoder / ENCODER_DIR, adapted.encoder),
        reranker=WholeWeights(load_file(reranker / RERANKER_DIR / WEIGHTS_FILE)),
        projectors=load_file(reranker / PROJECTORS_FILE),
        card=f"# {spec.name}\n",
    )


def _origin(
    adapter: BackboneAdapter | WholeWeights | AdaptedBackbone | None,
    fields: EncoderSpec | RerankerSpec,
    base: Path,
    partial: Path,
) -> dict[str, Any]:
    """Where a backbone of an adapter checkpoint comes from, and what its folder holds."""
    name = ENCODER_DIR if isinstance(fields, EncoderSpec) else RERANKER_DIR
    source, base_sha256 = fields.source, None
    if isinstance(adapter, AdaptedBackbone):
        source, base_sha256 = adapter.fields.source, adapter.fields.base_sha256
    elif not isinstance(adapter, WholeWeights):
        base_sha256 = weights_sha256(base / name)
    return {"source": source, "sha256": folder_sha256(partial / name), "base_sha256": base_sha256}


def merge_adapter(
    folder: Path,
    out: Path,
    *,
    encoder: str | Path | None = None,
    reranker: str | Path | None = None,
    notify: Notify = lambda step: None,
) -> CheckpointSpec:
    """Makes the full checkpoint of an adapter checkpoint, the same to the byte on every machine.

    Args:
        folder: The adapter checkpoint.
        out: The folder to make; must not exist yet.
        encoder: Folder or hub id of the encoder's base; None finds it by the name in ``resrank.json``.
        reranker: Likewise, of the reranker's.
        notify: Called with one line before each step that takes seconds.

    Returns:
        The fields of the full checkpoint.

    Raises:
        CheckpointError: The adapter checkpoint is not valid, a base cannot be had or is another one, or ``out``
            exists. ``out`` is either complete afterwards or not there.
    """
    refuse_existing(out)
    spec = validate_adapter(folder)
    parts: tuple[tuple[str, _AdaptedSpec, str | Path | None], ...] = (
        (ENCODER_DIR, spec.encoder, encoder),
        (RERANKER_DIR, spec.reranker, reranker),
    )
    bases = [_base_of(folder, name, fields, given, notify) for name, fields, given in parts]
    with written_aside(out) as partial:
        for (name, fields, _), base in zip(parts, bases, strict=True):
            if base is None:
                shutil.copytree(folder / name, partial / name)
                continue
            notify(f"merging the {name}")
            with _base_weights(folder / name, fields, base, partial) as weights:
                _merge_backbone(folder / name, weights, partial / name)
        for file in (PROJECTORS_FILE, CARD_FILE, CALIBRATION_FILE):
            if (folder / file).is_file():
                shutil.copyfile(folder / file, partial / file)
        merged = CheckpointSpec(
            name=spec.name,
            encoder=EncoderSpec(
                **spec.encoder.model_dump(exclude={"source", "sha256", "base_sha256"}),
                source=_merged_source(folder, spec, ENCODER_DIR),
                sha256=folder_sha256(partial / ENCODER_DIR),
            ),
            reranker=RerankerSpec(
                **spec.reranker.model_dump(exclude={"source", "sha256", "base_sha256"}),
                source=_merged_source(folder, spec, RERANKER_DIR),
                sha256=folder_sha256(partial / RERANKER_DIR),
            ),
            fusion=spec.fusion,
        )
        calibration_of(folder, merged.digest())  # before the partial folder's, whose name would say nothing
        write_spec(merged, partial)
        validate_folder(partial, verify_hashes=False)
    return merged


def full_checkpoint(checkpoint: Path, scratch: Path, notify: Notify = lambda step: None) -> Path:
    """A folder with all weights: the checkpoint itself, or an adapter checkpoint merged with bases found by name.

    Args:
        checkpoint: A full or an adapter checkpoint.
        scratch: Where the merged one goes, as ``checkpoint``; the caller removes it.
        notify: Called with one line before each step that takes seconds.

    Raises:
        CheckpointError: As for :func:`merge_adapter`.
    """
    if not is_adapter(checkpoint):
        return checkpoint
    merge_adapter(checkpoint, scratch / "checkpoint", notify=notify)
    return scratch / "checkpoint"


def default_checkpoint(notify: Notify = lambda step: None) -> Path:
    """The trained default as a full checkpoint, merged once and cached.

    Args:
        notify: Called with one line before each step that takes seconds.

    Returns:
        A folder in the cache, not to be changed.

    Raises:
        CheckpointError: As for :func:`merge_adapter`.
    """
    adapter = shipped_checkpoint(DEFAULT)
    spec = validate_adapter(adapter)
    calibration = adapter / CALIBRATION_FILE
    fitted = f"-{file_sha256(calibration)[:12]}" if calibration.is_file() else ""  # which the digest says nothing of
    folder = cache_folder() / "checkpoints" / f"{spec.name}-{spec.digest()[:12]}{fitted}"
    make_once(folder, lambda: merge_adapter(adapter, folder, notify=notify))
    return folder


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Computes W + scaling * B @ A, with the same bits on every machine.

    A matrix product of a library sums in an order that depends on the processor. Here it is a sum over r of outer
    products, element by element and in order, in fp64: every step is one operation that IEEE 754 rounds alike
    everywhere. The encoder's digest is the identity of an index, so this matters.

    Args:
        weight: W [out, in], FP32, FP16 or BF16.
        a: A [r, in].
        b: B [out, r].
        scaling: Of :class:`resrank.core.adapter.Lora`.

    Returns:
        [out, in] in W's type.
    """
    left, right = _fp64(b), _fp64(a)
    total = _fp64(weight)
    product = np.empty((min(_PRODUCT_ROWS, len(left)), right.shape[1]))
    term = np.empty_like(product)
    for start in range(0, len(left), _PRODUCT_ROWS):
        rows = left[start : start + _PRODUCT_ROWS]
        block, one = product[: len(rows)], term[: len(rows)]
        np.multiply(rows[:, 0, None], right[0], out=block)
        for k in range(1, len(right)):
            np.multiply(rows[:, k, None], right[k], out=one)
            block += one
        block *= scaling
        total[start : start + _PRODUCT_ROWS] += block
    return torch.from_numpy(total.astype(np.float32)).to(weight.dtype)


def _fp64(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.to(torch.float64).numpy()
    return array


def copy_without_weights(source: Path, target: Path) -> None:
    """Copies config and tokenizer of a backbone."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix in _KEPT_SUFFIXES and file.name not in (WEIGHTS_INDEX_FILE, LORA_CONFIG_FILE):
            shutil.copyfile(file, target / file.name)


def _write_lora(adapter: BackboneAdapter, target: Path, source: str, base: Path) -> None:
    # PEFT notes the path of the base on the machine that trained; whoever reads it needs the base's name.
    config = {**adapter.config, "base_model_name_or_path": source, "inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)  # PEFT holds module names as a set
    (target / LORA_CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    tensors = {name: finite(name, tensor, torch.float16) for name, tensor in adapter.tensors.items()}
    save_file(tensors, target / LORA_WEIGHTS_FILE, metadata={"format": "pt"})
    if (lora := read_lora(target)) is not None:
        refuse_foreign_lora(lora, backbone_tensors(base))


def finite(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as it is stored.

    Returns:
        Contiguous, on the CPU.

    Raises:
        CheckpointError: A number is not finite in this type.
    """
    stored = tensor.detach().to("cpu", dtype).contiguous()
    if not torch.isfinite(stored).all():
        raise CheckpointError(f"{name}: holds numbers that are not finite in {str(dtype).removeprefix('torch.')}")
    return stored


def _base_of(folder: Path, name: str, fields: _AdaptedSpec, given: str | Path | None, notify: Notify) -> Path | None:
    """The folder of a backbone's base; None for one that has its weights with it."""
    if has_whole_weights(folder / name):
        if given is not None:
            raise CheckpointError(f"{folder / name}: has its weights with it: leave out --{name}, it has no base")
        return None
    return resolve_source(given, digest_known=True) if given is not None else _find_base(name, fields.source, notify)


def _find_base(name: str, source: str, notify: Notify) -> Path:
    """The folder of the base that ``source`` names: a packaged one, the default checkpoint's, or one of the hub."""
    for backbone in PACKAGED_BACKBONES:
        if source == backbone.source:
            return materialize(backbone, cache_folder(), notify)
    try:
        adapter = shipped_checkpoint(DEFAULT)
    except CheckpointError:
        adapter = None  # it is not needed to look for a base elsewhere
    if adapter is not None and source == _merged_source(adapter, validate_adapter(adapter), name):
        return default_checkpoint(notify) / name
    try:
        return resolve_source(source, digest_known=True)
    except CheckpointError as error:
        raise CheckpointError(f"the {name}'s base is not at hand ({error}): give its folder with --{name}") from error


def _merged_source(folder: Path, spec: AdapterSpec, name: str) -> str:
    """What a merged checkpoint says about where a backbone came from; an untrained one is still its base."""
    fields: _AdaptedSpec = spec.encoder if name == ENCODER_DIR else spec.reranker
    return f"{fields.source} + {spec.name} ({spec.digest()[:12]})" if was_trained(folder / name) else fields.source


@contextmanager
def _base_weights(adapter: Path, fields: _AdaptedSpec, base: Path, scratch: Path) -> Iterator[Path]:
    """Gives a folder with the very weights that training started from, under the names of transformers' base model."""
    name = adapter.name
    found = weights_sha256(base)
    if found == fields.base_sha256:
        yield base
        return
    with tempfile.TemporaryDirectory(dir=scratch) as loaded:
        # As published, a language model has a head, and a prefix on all names. Training started without them, and
        # maybe on the first layers alone.
        with quiet_transformers():
            model = load_backbone(base)
            layers = _layers(adapter)
            if layers is not None and layers < (_layers(base) or 0):
                keep_layers(model, layers, base)
            model.save_pretrained(loaded)
        if weights_sha256(Path(loaded)) != fields.base_sha256:
            raise CheckpointError(
                f"{base}: the sha256 of its weights is {found}, but the adapter was trained on {fields.source}, which "
                f"has {fields.base_sha256}: give the folder of that model with --{name}"
            )
        yield Path(loaded)


def _layers(backbone: Path) -> int | None:
    """Layers of a backbone by its config, which need not say."""
    config = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    layers = config.get("num_hidden_layers")
    return layers if isinstance(layers, int) else None


def save_weights(weights: Mapping[str, Tensor], target: Path) -> None:
    """Writes all weights of a backbone in fp32.

    Args:
        weights: Under the names of transformers' base model.
        target: The backbone's folder, which has the other files.

    Raises:
        CheckpointError: A number is not finite.
    """
    stored = {key: finite(f"{target.name}: {key}", weight, torch.float32) for key, weight in weights.items()}
    save_file(stored, target / WEIGHTS_FILE, metadata={"format": "pt"})


def _merge_backbone(adapter: Path, base: Path, target: Path) -> None:
    places = backbone_tensors(base)
    tensors: dict[str, Tensor] = {}
    for file in sorted({place.file for place in places.values()}):
        tensors.update(load_file(file))
    if (lora := read_lora(adapter)) is not None:
        refuse_foreign_lora(lora, places)
        learned = load_file(adapter / LORA_WEIGHTS_FILE)
        for module, (a, b) in lora.modules.items():
            weight = merged_weight(tensors[f"{module}.weight"], learned[a.name], learned[b.name], lora.scaling)
            tensors[f"{module}.weight"] = finite(f"{adapter / LORA_WEIGHTS_FILE}: {module}", weight, weight.dtype)
    copy_without_weights(adapter, target)
    # One file, whatever the base had, and with transformers' metadata: what is the same must have the same digest.
    save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
