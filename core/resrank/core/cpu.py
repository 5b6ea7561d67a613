"""What this machine's processor can do, as its kernel says."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}


def cpuinfo() -> dict[str, str]:
    """The first processor's fields; none where the kernel has no such file."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cpu_flags() -> frozenset[str]:
    """The instruction sets, by Linux' names for them (on ARM ``Features``)."""
    facts = cpuinfo()
    return frozenset((facts.get("flags") or facts.get("Features") or "").split())


def has_vnni() -> bool:
    """Whether the processor multiplies four pairs of 8-bit numbers at once and adds them up in 32."""
    return not _VNNI.isdisjoint(cpu_flags())
