"""``python3 -m resrank.export.plan_record``: what ``build-engines.sh`` asks before building and tells after it.

It runs in NVIDIA's Triton container, in the Python that serves the repository (``resrank[triton]``).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from resrank.core.checkpoint import file_sha256
from resrank.core.durability import flush
from resrank.core.errors import ResRankError
from resrank.core.names import VERSION, Model
from resrank.export.manifest import (
    Manifest,
    ManifestError,
    PlanFacts,
    Runtime,
    plan_file,
    read_manifest,
    write_manifest,
)
from resrank.export.plan_header import read_plan_header
from resrank.serving.engines.base import EngineError, EngineKind

OLDEST_TENSORRT = 11
"""Major version from which on networks are always strongly typed: an older one may choose other precisions than the
graph says."""

_ENGINE_MODELS = (Model.ENCODER, Model.RERANKER)


def check_buildable(repository: Path, capability: str) -> str:
    """Says before a build whether its plans would belong to the repository.

    Args:
        repository: As export wrote it.
        capability: Of the GPU that builds.

    Returns:
        The file name that the plans get.

    Raises:
        ManifestError: The repository has no plans to build, none for this GPU, graphs that are not those exported, or
            the disk has no room for the plans.
    """
    manifest = read_manifest(repository)
    if manifest.runtime is not Runtime.TENSORRT:
        raise ManifestError(
            f"{repository}: was exported for runtime {manifest.runtime.value}, which builds nothing here"
        )
    wanted = manifest.compute_capabilities
    if wanted and capability not in wanted:
        raise ManifestError(
            f"{repository}: wants engines for compute capability {', '.join(wanted)}, but this GPU has {capability}: "
            f"build on such a GPU, or export again with --compute-capability {capability.replace('.', '')}"
        )
    graph_bytes = 0
    for model in _ENGINE_MODELS:
        for name, sha256 in manifest.models[model].onnx_sha256.items():
            path = repository / model / VERSION / name
            if not path.is_file():
                raise ManifestError(f"{path}: is missing: export the repository again")
            if (found := file_sha256(path)) != sha256:
                raise ManifestError(
                    f"{path}: its sha256 is {found}, but {sha256} was exported: copy or export the repository again"
                )
            graph_bytes += path.stat().st_size
    free = shutil.disk_usage(repository).free
    if free < graph_bytes:  # a plan holds the same weights
        raise ManifestError(
            f"{repository}: the engines need about {graph_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: make room"
        )
    return plan_file(wanted, capability)


def place_plans(
    repository: Path,
    capability: str,
    built: Path,
    seconds: Mapping[Model, float],
    reused_cache: Mapping[Model, bool],
) -> None:
    """Moves new plans into a repository and writes them into its manifest.

    Args:
        repository: As export wrote it.
        capability: Of the GPU that built the plans.
        built: The folder with ``encoder.plan`` and ``reranker.plan``, on the repository's file system.
        seconds: How long each build took.
        reused_cache: Whether each build took timings from an earlier one's cache.

    Raises:
        ManifestError: The manifest cannot be read.
        EngineError: A plan is missing, is no plan, or comes from a TensorRT that cannot have built it rightly; nothing
            was moved.
    """
    name = plan_file(read_manifest(repository).compute_capabilities, capability)
    facts = {
        model: _plan_facts(built / f"{model}.plan", name, seconds[model], reused_cache[model])
        for model in _ENGINE_MODELS
    }
    with _alone_in(repository):  # machines of several kinds build into one folder
        manifest = read_manifest(repository)
        models = dict(manifest.models)
        for model in _ENGINE_MODELS:
            # Without listed capabilities there is one plan, and so one GPU that it is for: the latest.
            others = models[model].plans if manifest.compute_capabilities else {}
            models[model] = models[model].model_copy(update={"plans": {**others, capability: facts[model]}})
            plan = built / f"{model}.plan"
            plan.chmod(0o644)
            flush(plan)
            plan.replace(repository / model / VERSION / name)
        write_manifest(Manifest.model_validate({**dict(manifest), "models": models}), repository)


@contextmanager
def _alone_in(repository: Path) -> Iterator[None]:
    """Waits until no other process changes the manifest, on whichever machine: seconds at most."""
    folder = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _plan_facts(plan: Path, name: str, seconds: float, reused_cache: bool) -> PlanFacts:
    header = read_plan_header(plan)
    version = ".".join(map(str, header.version))
    if header.flavour is not EngineKind.TENSORRT or header.version[0] < OLDEST_TENSORRT:
        raise EngineError(
            f"{plan.stem}: the plan was built by {header.flavour.value} {version}, but the repository needs tensorrt "
            f"{OLDEST_TENSORRT} or later: build inside the Triton container that will serve it"
        )
    return PlanFacts(
        file=name,
        sha256=file_sha256(plan),
        bytes=plan.stat().st_size,
        tensorrt_flavour=header.flavour,
        tensorrt_version=version,
        timing_cache=reused_cache,
        build_seconds=seconds,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: Of the command line; None for the process's own.

    Returns:
        The exit status: 0, or 1 after one sentence on standard error.
    """
    parser = argparse.ArgumentParser(prog="python3 -m resrank.export.plan_record", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="before a build: prints the file name that the plans get")
    place = commands.add_parser("place", help="after a build: moves the plans into the repository and its manifest")
    for command in (check, place):
        command.add_argument("repository", type=Path)
        command.add_argument("capability", type=_capability, help="compute capability of the GPU, as 8.9")
    place.add_argument("built", type=Path, help="folder with encoder.plan and reranker.plan")
    for model in _ENGINE_MODELS:
        place.add_argument(f"--{model.value}-seconds", type=float, required=True)
        place.add_argument(f"--{model.value}-timing-cache", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if given.command == "check":
            print(check_buildable(given.repository, given.capability))
        else:
            place_plans(
                given.repository,
                given.capability,
                given.built,
                {model: getattr(given, f"{model.value}_seconds") for model in _ENGINE_MODELS},
                {model: getattr(given, f"{model.value}_timing_cache") for model in _ENGINE_MODELS},
            )
    except (ResRankError, OSError, ValueError) as error:
        print(f"resrank: {error}", file=sys.stderr)
        return 1
    return 0


def _capability(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d?\.\d", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability as nvidia-smi tells it, 8.9 for instance")
    return text


if __name__ == "__main__":
    sys.exit(main())
