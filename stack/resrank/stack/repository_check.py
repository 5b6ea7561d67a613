"""Compares a model repository with the machine that is to serve it, before a server is started for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

from resrank.core.checkpoint import file_sha256, validate_folder
from resrank.core.errors import CheckpointError, StackError
from resrank.core.extras import install_command
from resrank.core.names import CHECKPOINT_DIR, VERSION, Model
from resrank.export.build_script import BUILD_SCRIPT
from resrank.export.manifest import EngineFacts, Manifest, ManifestError, PlanFacts, Runtime, read_manifest
from resrank.serving.engines.base import EngineKind, Precision
from resrank.stack.check import Check, Status
from resrank.stack.gpu import Gpu, Machine
from resrank.stack.refusal import Problem, Refusal

_BF16_CAPABILITY = (8, 0)
"""The first compute capability whose tensor cores multiply bf16 (CUDA C++ Programming Guide, compute capabilities)."""

_TITLES = {
    EngineKind.OPENVINO: "OpenVINO",
    EngineKind.ONNXRUNTIME: "ONNX Runtime",
    EngineKind.TENSORRT: "TensorRT",
    EngineKind.TENSORRT_RTX: "TensorRT for RTX",
    EngineKind.TORCH: "torch",
}
_EXTRAS = {
    EngineKind.OPENVINO: "cpu",
    EngineKind.ONNXRUNTIME: "cpu",
    EngineKind.TORCH: "torch",
}
_ON_CPU = (EngineKind.OPENVINO, EngineKind.ONNXRUNTIME)


def check_repository(repository: Path, machine: Machine) -> list[Check]:
    """Compares everything, the files' digests included (seconds for each GB).

    Args:
        repository: Model repository as ``resrank export`` writes it.
        machine: What would serve it.

    Returns:
        One line for each engine; one line in all when the manifest cannot be read.
    """
    try:
        manifest = read_manifest(repository)
    except ManifestError as error:
        return [Check("manifest", Status.FAILED, str(error))]
    checks = []
    for model, facts in manifest.models.items():
        problems = _EngineCheck(repository, manifest, model, machine, digests=True).problems()
        engine = f"{manifest.checkpoint.name} on {_describe(facts)}"
        if problems:
            causes = "; ".join(problem.cause for problem in problems)
            remedies = "; ".join(dict.fromkeys(problem.remedy for problem in problems))
            checks.append(Check(model.value, Status.FAILED, f"{engine}: {causes}", remedies))
        else:
            checks.append(Check(model.value, Status.OK, f"{engine}: fits, its files are as exported"))
    return checks


def runs_on_cpu(repository: Path) -> bool:
    """Whether a repository's engines run on a CPU, as far as its manifest can be read.

    Args:
        repository: Model repository as ``resrank export`` writes it.
    """
    try:
        return read_manifest(repository).runtime is Runtime.CPU
    except ManifestError:
        return True


def require_servable(repository: Path, manifest: Manifest, machine: Machine) -> None:
    """Refuses a repository that this machine cannot serve. Files are compared by size, not by digest.

    Args:
        repository: Model repository as ``resrank export`` writes it.
        manifest: Its manifest.
        machine: What would serve it.

    Raises:
        StackError: It cannot be served; the message has the first problem, and how many more there are.
    """
    found: dict[Problem, Model] = {}
    for model in manifest.models:
        for problem in _EngineCheck(repository, manifest, model, machine, digests=False).problems():
            found.setdefault(problem, model)
    if not found:
        return
    (first, model), *others = found.items()
    more = f" ({len(others)} more: resrank doctor {repository})" if others else ""
    raise StackError(f"{repository} cannot be served here: {model.value}: {first.cause}: {first.remedy}{more}")


def _describe(facts: EngineFacts) -> str:
    parts = [f"{_TITLES[facts.engine]} {facts.precision.value}"]
    if facts.plans:
        built = {f"{plan.tensorrt_version}" for plan in facts.plans.values()}
        parts.append(f"built by {_listed(sorted(built))} for {_listed(sorted(facts.plans, key=_numbers))}")
    if facts.profiles:
        parts.append(f"{len(facts.profiles)} profile{'s' * (len(facts.profiles) > 1)}")
    return ", ".join(parts)


class _EngineCheck:
    """The comparison for one engine model."""

    def __init__(self, repository: Path, manifest: Manifest, model: Model, machine: Machine, *, digests: bool) -> None:
        self._repository = repository
        self._manifest = manifest
        self._model = model
        self._facts = manifest.models[model]
        self._folder = repository / model / VERSION
        self._machine = machine
        self._digests = digests

    def problems(self) -> list[Problem]:
        """Everything that stands in the way: the files first, then what runs them, then the GPUs."""
        checks: tuple[Callable[[], Iterator[Problem]], ...]
        if self._facts.engine in _ON_CPU:
            checks = (self._graph, self._package, self._cpu_precision)
        elif self._facts.engine is EngineKind.TORCH:
            checks = (self._checkpoint, self._package, self._torch_cuda, self._gpus)
        elif self._facts.engine is EngineKind.TENSORRT_RTX:
            checks = (self._proof,)
        else:
            checks = (self._graph, self._plans, self._backend, self._gpus)
        return [problem for check in checks for problem in check()]

    # Files

    def _graph(self) -> Iterator[Problem]:
        """The exported ONNX. Engines on a CPU read it at start, the others only while their plans are built."""
        needed = self._facts.engine in _ON_CPU or self._unbuilt() != ()
        folders = [self._folder]
        bulk = self._repository / Model.BULK_ENCODER / VERSION
        if (
            self._model is Model.ENCODER and bulk.is_dir()
        ):  # the same graph once more, a copy where links are not possible
            folders.append(bulk)
        for folder, (name, expected) in product(folders, self._facts.onnx_sha256.items()):
            file = folder / name
            if not file.is_file():
                if needed:
                    yield Problem(
                        Refusal.MISSING_FILE, f"{self._relative(file)} {Refusal.MISSING_FILE}", self._export_again()
                    )
            elif self._digests and file_sha256(file) != expected:
                yield self._changed(file)

    def _checkpoint(self) -> Iterator[Problem]:
        folder = self._folder / CHECKPOINT_DIR
        if not folder.is_dir():
            yield Problem(
                Refusal.MISSING_FILE, f"{self._relative(folder)} {Refusal.MISSING_FILE}", self._export_again()
            )
            return
        try:
            spec = validate_folder(folder, verify_hashes=self._digests)
        except CheckpointError as error:
            yield Problem(
                Refusal.CHANGED, f"{self._relative(folder)} {Refusal.CHANGED} ({error})", self._export_again()
            )
            return
        if spec.digest() != (self._facts.checkpoint_sha256 or self._manifest.checkpoint.sha256):
            yield self._changed(folder)

    def _plans(self) -> Iterator[Problem]:
        unbuilt = self._unbuilt()
        if unbuilt is None or unbuilt:
            wanted = f" for compute capability {_listed(unbuilt)}" if unbuilt else ""
            yield Problem(Refusal.NOT_BUILT, f"its plan{wanted} {Refusal.NOT_BUILT}", self._build())
        wanted_here = {gpu.capability for gpu in self._serving()} or set(self._facts.plans)
        for capability, plan in self._facts.plans.items():
            if capability in wanted_here:
                yield from self._plan_file(self._folder / plan.file, plan)

    def _plan_file(self, file: Path, plan: PlanFacts) -> Iterator[Problem]:
        try:
            size = file.stat().st_size
        except OSError:
            yield Problem(Refusal.MISSING_FILE, f"{self._relative(file)} {Refusal.MISSING_FILE}", self._build())
            return
        if size != plan.bytes:
            cause = f"{self._relative(file)} has {size:,} {Refusal.OTHER_SIZE} {plan.bytes:,}"
            again = f"copy the repository again, or {self._build()}"
            yield Problem(Refusal.OTHER_SIZE, cause, again)
        elif self._digests and file_sha256(file) != plan.sha256:
            yield self._changed(file)

    # What runs them

    def _backend(self) -> Iterator[Problem]:
        backend, triton = self._machine.tensorrt_backend, self._machine.triton
        if backend is None:
            server = "no Triton can be started here, so there is"
            if triton is not None:
                server = f"Triton {triton.version() or triton.executable} has"
            yield Problem(
                Refusal.NO_BACKEND,
                f"{server} {Refusal.NO_BACKEND}",
                "serve it in NVIDIA's Triton container (deploy/docker)",
            )
            return
        yield from self._other_version(backend.tensorrt)

    def _proof(self) -> Iterator[Problem]:
        cause = f"{Refusal.NOT_SERVED} of {_TITLES[self._facts.engine]}, which prove that the graphs build"
        yield Problem(Refusal.NOT_SERVED, cause, "export with --runtime tensorrt")

    def _package(self) -> Iterator[Problem]:
        kind = self._facts.engine
        remedy = install_command(_EXTRAS[kind])
        for package in self._machine.missing_companions(kind):
            yield Problem(Refusal.NOT_INSTALLED, f"{package} {Refusal.NOT_INSTALLED}", remedy)
        if self._machine.package(kind) is None:
            yield Problem(Refusal.NOT_INSTALLED, f"{_TITLES[kind]} {Refusal.NOT_INSTALLED}", remedy)

    def _other_version(self, found: str | None) -> Iterator[Problem]:
        if found is None:
            return
        capabilities = {gpu.capability for gpu in self._serving()} or set(self._facts.plans)
        for capability, plan in self._facts.plans.items():
            if capability in capabilities and not _same_release(plan.tensorrt_version, found):
                title = _TITLES[self._facts.engine]
                cause = (
                    f"its plan for {capability} was built by {title} {plan.tensorrt_version}, Triton's backend runs "
                    f"{found}, and {Refusal.OTHER_VERSION}"
                )
                yield Problem(
                    Refusal.OTHER_VERSION, cause, f"serve it with {title} {plan.tensorrt_version}, or {self._build()}"
                )

    def _torch_cuda(self) -> Iterator[Problem]:
        found = self._machine.package(EngineKind.TORCH)
        if found is not None and self._machine.torch_cuda is None and self._serving():
            cause = f"torch {found} was {Refusal.NO_CUDA}, and Triton puts the engine on {self._serving()[0]}"
            yield Problem(Refusal.NO_CUDA, cause, "install torch's CUDA build, or hide the GPU: CUDA_VISIBLE_DEVICES=")

    def _cpu_precision(self) -> Iterator[Problem]:
        if self._facts.engine is not EngineKind.OPENVINO or self._machine.package(EngineKind.OPENVINO) is None:
            return
        if self._facts.precision is Precision.BF16 and not self._machine.cpu_bf16:
            cause = f"it multiplies in bf16 and {Refusal.NO_BF16_CPU} instructions"
            yield Problem(Refusal.NO_BF16_CPU, cause, "export with --precision fp32")
        if self._facts.precision is Precision.INT8 and not self._machine.cpu_vnni:
            cause = f"it multiplies in int8 and {Refusal.NO_VNNI} instructions"
            yield Problem(Refusal.NO_VNNI, cause, "export with --precision fp32")

    # GPUs

    def _gpus(self) -> Iterator[Problem]:
        here = self._machine.gpus
        if not here and self._facts.engine is EngineKind.TORCH and not self._manifest.gpus:
            return  # torch runs on the CPU then
        if not here:
            needed = _listed(self._manifest.compute_capabilities, "or")
            kind = f" of compute capability {needed}" if needed else ""
            yield Problem(
                Refusal.NO_GPU,
                f"there is {Refusal.NO_GPU} ({self._machine.gpu_problem})",
                f"serve it on a machine with an NVIDIA GPU{kind}, or export with --runtime cpu",
            )
            return
        for ordinal in self._manifest.gpus:
            if ordinal not in {gpu.ordinal for gpu in here}:
                yield Problem(
                    Refusal.NO_SUCH_GPU,
                    f"GPU {ordinal} {Refusal.NO_SUCH_GPU} ({_listed([str(gpu.ordinal) for gpu in here])})",
                    "export with --gpus for those, or change CUDA_VISIBLE_DEVICES",
                )
        for gpu in self._serving():
            yield from self._gpu(gpu)

    def _gpu(self, gpu: Gpu) -> Iterator[Problem]:
        if self._facts.precision is Precision.BF16 and _numbers(gpu.capability) < _BF16_CAPABILITY:
            yield Problem(Refusal.NO_BF16_GPU, f"{gpu} {Refusal.NO_BF16_GPU}", "export with --precision fp16 or fp32")
        if self._facts.engine is EngineKind.TORCH:
            return
        if gpu.capability not in self._facts.plans:
            yield from self._other_capability(gpu)
            return
        needed = sum(
            facts.plans[gpu.capability].bytes
            for facts in self._manifest.models.values()
            if gpu.capability in facts.plans
        )
        if gpu.free_bytes is not None and needed > gpu.free_bytes:
            free = _gib(gpu.free_bytes) + ("" if gpu.memory_bytes is None else f" of {_gib(gpu.memory_bytes)}")
            cause = f"the plans alone take {_gib(needed)} {Refusal.TOO_LITTLE_MEMORY}, and {gpu} has {free} GiB free"
            yield Problem(Refusal.TOO_LITTLE_MEMORY, cause, "end what else uses the GPU, or take a larger one")

    def _other_capability(self, gpu: Gpu) -> Iterator[Problem]:
        planned = self._manifest.compute_capabilities or tuple(self._facts.plans)
        if not planned or gpu.capability in planned:
            return  # not built yet, which is said already
        names = _listed(sorted(planned, key=_numbers))
        if not self._manifest.compute_capabilities:
            remedy = f"{self._build()} --force"
        else:
            remedy = f"export with --compute-capability {gpu.capability.replace('.', '')}"
        yield Problem(
            Refusal.OTHER_CAPABILITY,
            f"{gpu} is here and {Refusal.OTHER_CAPABILITY}, only for {names}",
            f"{remedy}, or export with --gpus for those that have one",
        )

    # Shared words

    def _serving(self) -> tuple[Gpu, ...]:
        """The GPUs that would serve: those that the repository names, or all."""
        wanted = self._manifest.gpus
        return tuple(gpu for gpu in self._machine.gpus if not wanted or gpu.ordinal in wanted)

    def _unbuilt(self) -> tuple[str, ...] | None:
        """As :meth:`Manifest.missing_plans`, but only for the GPUs here when there are any."""
        missing = self._manifest.missing_plans(self._model)
        here = {gpu.capability for gpu in self._serving()} if missing else set()
        return tuple(capability for capability in missing if capability in here) if missing and here else missing

    def _changed(self, path: Path) -> Problem:
        return Problem(
            Refusal.CHANGED, f"{self._relative(path)} {Refusal.CHANGED} (sha256 differs)", self._export_again()
        )

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._repository))

    def _export_again(self) -> str:
        return f"copy the repository again, or make it anew: resrank export CHECKPOINT --out {self._repository} --force"

    def _build(self) -> str:
        return f"build it in the Triton container that will serve it: {self._repository / BUILD_SCRIPT}"


def _same_release(built: str, found: str) -> bool:
    """Whether two versions agree in all numbers that both have (a library's file name has no build number)."""
    pairs = zip(_numbers(built), _numbers(found), strict=False)
    return all(one == other for one, other in pairs)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdecimal())


def _listed(words: Sequence[str], conjunction: str = "and") -> str:
    return f" {conjunction} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
