"""The machine that the figures belong to."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from resrank.core.cpu import cpu_flags, cpuinfo

_PACKAGES = (
    "resrank",
    "nvidia-pytriton",
    "openvino",
    "onnxruntime",
    "torch",
    "transformers",
    "sentence-transformers",
    "faiss-cpu",
    "milvus-lite",
    "grpcio",
    "numpy",
)
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86's two and ARM's, as Linux names them


@dataclass(frozen=True)
class Machine:
    """What decides the figures besides the code.

    Attributes:
        cpu: The processor's name.
        cores: Cores that this process may use.
        bf16: Whether the processor multiplies in bf16.
        python: Version of the interpreter.
        versions: Package to version, of those installed.
    """

    cpu: str
    cores: int
    bf16: bool
    python: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Processor and interpreter in a line."""
        bf16 = "with bf16" if self.bf16 else "without bf16"
        return f"{self.cpu}, {self.cores} cores, {bf16}, Python {self.python}"

    @property
    def versions_line(self) -> str:
        """The packages in a line."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())


def describe_machine() -> Machine:
    """Looks at this machine."""
    facts = cpuinfo()
    # A hypervisor may hide the model's name; family and model number still tell machines apart.
    cpu = " ".join(filter(None, (facts.get("model name") or platform.machine(), _family(facts))))
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return Machine(cpu, usable_cores(), not _BF16_FLAGS.isdisjoint(cpu_flags()), platform.python_version(), versions)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _family(facts: dict[str, str]) -> str:
    family, model = facts.get("cpu family"), facts.get("model")
    return f"(family {family}, model {model})" if family and model else ""
