"""Checks of the installation: one finding per check, with its remedy; a failed check does not stop the others.

Steps that could crash the process (importing a package built for another torch, starting gloo) run in a process of
their own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..io import files
from ..io.expressions import one_line

OLDEST_PYTHON, OLDEST_TORCH = (3, 11), (2, 10)


PATIENCE = 120.0  # seconds for a process of its own; importing torch takes some ten on a cold disk


ROOM = 10**9  # bytes

_TRY_TORCH = "import torch; torch.ones(8, 8) @ torch.ones(8, 8)"


_TRY_GLOO = """
import os, sys, tempfile, torch.distributed as dist
with tempfile.TemporaryDirectory() as folder:
    store = dist.FileStore(os.path.join(folder, "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    dist.barrier()
    dist.destroy_process_group()
"""


_UNNEEDED = "nothing in selfdistill needs it"


#: package -> (code to run, remedy). The first two are not needed, but if broken they break packages that import them.
PACKAGES = {
    "torchvision": (
        "import torchvision",
        f"pip uninstall torchvision ({_UNNEEDED}; broken, it takes timm, torchmetrics and transformers down)",
    ),
    "torchaudio": ("import torchaudio", f"pip uninstall torchaudio ({_UNNEEDED})"),
    "timm": ("import timm", "mend torchvision first if it is named above, then pip install --upgrade timm"),
    "torchmetrics": (
        "import torchmetrics",
        "mend torchvision first if it is named above, then pip install --upgrade torchmetrics",
    ),
    "transformers": (
        "import transformers, transformers.image_utils",
        "mend torchvision first if it is named above, then pip install --upgrade transformers",
    ),
}


EXTRAS = {
    "images": ("PIL",),
    "tables": ("pandas", "pyarrow", "skops"),
    "control": ("gymnasium", "stable_baselines3", "sb3_contrib"),
}


@dataclass(frozen=True)
class Finding:
    """The result of a check: ``state`` is "ok", "warn" (works with limits) or "fail" (repair it first)."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Run every check; takes about three times as long as importing torch."""
    findings = [_run_check("python", _python), _run_check("torch imports", _try_torch)]
    checks = CHECKS
    if findings[-1].state == "fail":  # what needs torch would take torch's fault for its own
        checks = {name: (_skip_check(name) if needs else check, needs) for name, (check, needs) in checks.items()}
    with ThreadPoolExecutor(max_workers=2) as pool:  # two: most checks wait for a process of their own
        return findings + list(pool.map(lambda item: _run_check(item[0], item[1][0]), checks.items()))


def _run_check(name: str, check: Callable[[], Finding]) -> Finding:
    """A check's finding; if the check raises, a finding that says so."""
    try:
        return check()
    except (Exception, SystemExit) as error:
        return Finding(
            name, "fail", f"the check broke off: {type(error).__name__}: {one_line(error)}", "see the detail"
        )


def _skip_check(name: str) -> Callable[[], Finding]:
    return lambda: Finding(name, "warn", "not checked: torch does not import", "mend torch first")


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> _version("2.13.0+cpu"), _version("2.10.0rc1")
    ((2, 13, 0), (2, 10, 0))
    """
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[+a-zA-Z-]", text)[0]))


def _run_python(code: str) -> str:
    """Run Python code in a process with this one's search path; returns "" or the error."""
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    command = [sys.executable, "-P", "-W", "ignore", "-c", code]
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        result = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PATIENCE:.0f} seconds"
    if result.returncode < 0:
        return f"killed by signal {-result.returncode}"
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        return one_line(lines[-1]) if lines else f"exit code {result.returncode}"
    return ""


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Finding("python", "fail", f"Python {version}", "use Python 3.11 or newer")
    return Finding("python", "ok", f"Python {version}")


def _try_torch() -> Finding:
    fault = _run_python(_TRY_TORCH)
    if fault:
        return Finding("torch imports", "fail", fault, "pip install --force-reinstall 'torch>=2.10'")
    return Finding("torch imports", "ok", "imports and multiplies")


def _torch() -> Finding:
    import torch

    version = str(torch.__version__)
    if _version(version) < OLDEST_TORCH:
        reason = "loading a checkpoint could run code (CVE-2026-24747)"
        return Finding("torch", "fail", f"torch {version}: {reason}", "pip install --upgrade 'torch>=2.10'")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return Finding("torch", "ok", f"torch {version}, built for {build}")


def _device() -> Finding:
    import torch

    available = torch.cuda.is_available()
    if available:
        with_gpu = torch.ones(8, 8, device="cuda")
        if (with_gpu @ with_gpu).sum().item() != 512:  # raises where the build lacks this GPU's kernels
            return Finding("device", "fail", "a matrix product on the GPU is wrong", "check the driver")
        return Finding("device", "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    if torch.version.cuda:
        remedy = "check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or install the CPU build of torch"
        return Finding("device", "warn", f"torch is built for CUDA {torch.version.cuda} but sees no device", remedy)
    if Path("/dev/nvidia0").exists():
        return Finding(
            "device", "warn", "a GPU is there but this torch is a CPU build", "install a CUDA build of torch"
        )
    return Finding("device", "ok", "CPU")


def cores() -> int:
    """Cores this process may use: its affinity, or a container's quota if that is less."""
    count = files.cores()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return count


def _threads() -> Finding:
    import torch

    count, setting = cores(), os.environ.get("OMP_NUM_THREADS", "")
    if setting and (not setting.isdecimal() or int(setting) > count):
        remedy = f"unset OMP_NUM_THREADS, or set it to {count} or less"
        return Finding("threads", "warn", f"OMP_NUM_THREADS is {one_line(setting, 20)!r} on {count} cores", remedy)
    threads = torch.get_num_threads()
    if threads > count:
        return Finding(
            "threads", "warn", f"torch uses {threads} threads on {count} cores", f"set OMP_NUM_THREADS={count}"
        )
    summary = f"{threads} thread{'' if threads == 1 else 's'} on {count} core{'' if count == 1 else 's'}"
    return Finding("threads", "ok", summary)


def _numpy() -> Finding:
    import torch

    remedy = "pip install --upgrade numpy torch (they are built for different versions of each other)"
    try:
        array = torch.ones(1).numpy()
        back = torch.from_numpy(array + 1)
    except (RuntimeError, TypeError, ImportError) as error:
        return Finding("numpy", "fail", f"torch and numpy do not share memory: {one_line(error)}", remedy)
    if back.tolist() != [2.0]:
        return Finding("numpy", "fail", f"a 2 came back from numpy as {back.tolist()}", remedy)
    return Finding("numpy", "ok", "numpy and torch share memory")


def _safetensors() -> Finding:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {"float": torch.tensor([0.1, math.inf, -0.0]), "whole": torch.tensor([1, -(2**62)])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.safetensors"
        save_file(tensors, path)
        loaded = load_file(path)
        equal = all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    if not equal:
        remedy = "pip install --force-reinstall safetensors"
        return Finding("safetensors", "fail", "tensors come back changed", remedy)
    return Finding("safetensors", "ok", "tensors come back as they were")


def _determinism() -> Finding:
    import torch

    a = torch.linspace(-1, 1, 256 * 256).view(256, 256)
    if torch.equal(a @ a.T, a @ a.T):
        return Finding("determinism", "ok", "two equal matrix products are bit-equal")
    remedy = "set OMP_NUM_THREADS=1; resumed runs will not be exact without"
    return Finding("determinism", "warn", "two equal matrix products differ", remedy)


def _folder() -> Finding:
    folder = Path.cwd()
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(
            "folder", "fail", f"{folder} is not writable ({one_line(error)})", "use another folder, or --out"
        )
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        return Finding(
            "folder", "warn", f"{free / 1e6:.0f} MB are free below {folder}", "free some space, or use --out"
        )
    return Finding("folder", "ok", f"{folder} is writable, {free / 1e9:.0f} GB free")


def _compiler() -> Finding:
    names = [os.environ.get("CXX", "").split(" ")[0], "g++", "clang++", "c++", "cl"]
    compiler = next((name for name in names if name and shutil.which(name)), None)
    remedy = "not needed unless you compile: install g++ (Debian: apt install g++ python3-dev)"
    if compiler is None:
        return Finding("compiler", "warn", "no C++ compiler: torch.compile will fail", remedy)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        return Finding("compiler", "warn", f"{compiler}, but no Python.h: torch.compile will fail", remedy)
    return Finding("compiler", "ok", f"{compiler} and Python.h, for torch.compile")


def _extra(name: str, modules: Sequence[str]) -> Callable[[], Finding]:
    def check() -> Finding:
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            remedy = f"if you want {name}: pip install 'selfdistill[{name}]'"
            return Finding(f"extra {name}", "ok", f"not installed ({', '.join(missing)})", remedy)
        return Finding(f"extra {name}", "ok", "installed")

    return check


def _gloo() -> Finding:
    fault = _run_python(_TRY_GLOO)
    if fault:
        remedy = "needed for torchrun on CPU only; see that the host's own name resolves (hostname, /etc/hosts)"
        return Finding("gloo", "warn", f"a process group does not start: {fault}", remedy)
    fork = "fork and gloo" if hasattr(os, "fork") else "gloo"
    return Finding("gloo", "ok", f"{fork} for torchrun")


def _package_check(name: str) -> Callable[[], Finding]:
    """The check that an optional package imports and is built for this torch."""

    def check() -> Finding:
        if importlib.util.find_spec(name) is None:
            return Finding(name, "ok", "not installed, and not needed")
        code, remedy = PACKAGES[name]
        fault = _run_python(code)
        if fault:
            return Finding(name, "warn", f"installed but broken: {fault}", remedy)
        required = _pinned_torch(name)
        installed = importlib.metadata.version("torch") if required else ""
        if installed.partition("+")[0] != required:
            return Finding(name, "warn", f"built for torch {required}, but torch {installed} is installed", remedy)
        return Finding(name, "ok", "imports")

    return check


def _pinned_torch(name: str) -> str:
    """The torch version that a package pins; "" if it pins none, or only for an extra.

    >>> _pinned_torch("numpy")
    ''
    """
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    required = [need.partition(";")[0].strip() for need in needs if "extra" not in need.partition(";")[2]]
    pins = [re.fullmatch(r"torch\s*\(?==\s*([\w.]+?)(\+\w+)?\)?", need) for need in required]
    return next((pin[1] for pin in pins if pin), "")


Checks = dict[str, tuple[Callable[[], Finding], bool]]

#: name -> check, and does it need torch?
CHECKS: Checks = {
    "torch": (_torch, True),
    "device": (_device, True),
    "threads": (_threads, True),
    "numpy": (_numpy, True),
    "safetensors": (_safetensors, True),
    "determinism": (_determinism, True),
    "gloo": (_gloo, True),
    "folder": (_folder, False),
    "compiler": (_compiler, False),
    **{f"extra {name}": (_extra(name, modules), False) for name, modules in EXTRAS.items()},
    **{name: (_package_check(name), True) for name in PACKAGES},
}
