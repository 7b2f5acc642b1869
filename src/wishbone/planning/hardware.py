"""What this machine has: processor, memory, disk and accelerators.

Inside a container the limits of its control group count, not those of the machine around it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "sve": "SVE",
    "bf16": "BF16",
}


@dataclass(frozen=True)
class Cpu:
    """A processor.

    Attributes:
        model: name as the system gives it.
        cores: logical cores this process may use.
        features: instruction sets that matter for matrix products, of `AVX2`, `AVX-512`, `AVX-512 BF16`, ...
    """

    model: str
    cores: int
    features: tuple[str, ...]

    @property
    def bf16(self) -> bool:
        """Whether bfloat16 products are computed in hardware."""
        return any("BF16" in feature for feature in self.features)


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes; `available` is what a process can take without swapping."""

    total: int
    available: int


@dataclass(frozen=True)
class Accelerator:
    """A GPU.

    Attributes:
        kind: device type of torch, `cuda` (also for ROCm) or `mps`.
        name: name as the driver gives it.
        memory: bytes in all; 0 if memory is shared with the processor.
        available: bytes free now, the same.
        capability: compute capability (major, minor) of an NVIDIA GPU, else None.
        bf16: whether it computes in bfloat16.
        fp8: whether it multiplies FP8 matrices (NVIDIA, capability 8.9 and up).
        int8: whether it multiplies int8 matrices (NVIDIA, capability 7.5 and up).
    """

    kind: str
    name: str
    memory: int
    available: int
    capability: tuple[int, int] | None
    bf16: bool
    fp8: bool
    int8: bool


def read_cpu(cpuinfo: Path = Path("/proc/cpuinfo"), cgroup: Path = CGROUP) -> Cpu:
    """The processor of this machine, cores limited by affinity and control group."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    fields = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = set(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())
    return Cpu(
        model=fields.get("model name") or _mac_cpu() or platform.processor() or platform.machine(),
        cores=_cores(cgroup),
        features=tuple(name for flag, name in _FEATURES.items() if flag in flags),
    )


def _mac_cpu() -> str:
    if platform.system() != "Darwin":
        return ""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _cores(cgroup: Path) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _words(cgroup / "cpu.max")
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def read_memory(cgroup: Path = CGROUP) -> Memory:
    """Main memory that this process can use."""
    import psutil  # type: ignore[import-untyped]

    machine = psutil.virtual_memory()
    limit = _words(cgroup / "memory.max")
    if not limit or limit[0] == "max" or int(limit[0]) >= machine.total:
        return Memory(machine.total, machine.available)
    statistics = _words(cgroup / "memory.stat")
    reclaimable = int(statistics[statistics.index("inactive_file") + 1]) if "inactive_file" in statistics else 0
    free = int(limit[0]) - int(_words(cgroup / "memory.current")[0]) + reclaimable
    return Memory(int(limit[0]), min(free, machine.available))


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").split() if path.is_file() else []


def free_disk(path: Path) -> int:
    """Free bytes where `path` is, or will be once its missing parents are made."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def read_accelerators() -> list[Accelerator]:
    """The GPUs that torch can use.

    Raises:
        ImportError: torch is not installed, or its libraries cannot be loaded.
        OSError: the same.
    """
    import torch

    if torch.backends.mps.is_available():
        return [Accelerator("mps", read_cpu().model, 0, 0, None, bf16=True, fp8=False, int8=False)]
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = None if torch.version.hip else (properties.major, properties.minor)
        found.append(
            Accelerator(
                kind="cuda",
                name=properties.name,
                memory=properties.total_memory,
                available=torch.cuda.mem_get_info(index)[0],
                capability=capability,
                bf16=capability is None or capability >= (8, 0),
                fp8=capability is not None and capability >= (8, 9),
                int8=capability is not None and capability >= (7, 5),
            )
        )
    return found


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is loaded, also where torch is a CPU build that does not use it."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
