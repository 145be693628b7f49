"""The doctor names what is broken and how to mend it, and no fault stops it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from selfdistill.cli import doctor
from selfdistill.cli.doctor import CHECKS, EXTRAS, PACKAGES, Finding, cores, examine


def run(name: str) -> Finding:
    """One check as `examine` runs it."""
    return doctor._run_check(name, CHECKS[name][0])


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages that is searched first, here and in processes started from here."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in PACKAGES:
        sys.modules.pop(name, None)


def install(site: Path, name: str, code: str = "", needs: str = "") -> None:
    """A fake package, with the list of what it needs if any."""
    (site / name).mkdir()
    (site / name / "__init__.py").write_text(code)
    if needs:
        (site / f"{name}-1.0.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: {needs}\n"
        (site / f"{name}-1.0.dist-info" / "METADATA").write_text(metadata)


def test_a_broken_torchvision_is_named_and_everything_else_is_still_examined(site):
    install(site, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    findings = {finding.name: finding for finding in examine()}
    assert list(findings) == ["python", "torch imports", *CHECKS]
    broken = findings.pop("torchvision")
    assert broken.state == "warn"
    assert broken.detail == "installed but broken: RuntimeError: operator torchvision::nms does not exist"
    assert broken.remedy.startswith("pip uninstall torchvision (nothing in selfdistill needs it")
    assert {finding.state for finding in findings.values()} <= {"ok", "warn"}
    assert all(finding.remedy for finding in findings.values() if finding.state != "ok")
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_an_absent_package_is_fine_and_a_sound_one_too(site, name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed in this environment")
    assert run(name) == Finding(name, "ok", "not installed, and not needed")
    install(site, name)
    (site / name / "image_utils.py").touch()
    assert run(name) == Finding(name, "ok", "imports")
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("import os; os._exit(3)", "exit code 3"),
        ("raise SystemExit('no\\x07')", "no\\x07"),
        ("import nothing_such", "ModuleNotFoundError: No module named 'nothing_such'"),
        ("import sys; sys.stderr.buffer.write(bytes([255, 10])); 1 / 0", "ZeroDivisionError: division by zero"),
        ("import time; time.sleep(60)", "no answer within 1 seconds"),
    ],
)
def test_whatever_an_import_does_it_does_it_elsewhere(site, monkeypatch, code, detail):
    if "sleep" in code:
        monkeypatch.setattr(doctor, "PATIENCE", 1.0)
    install(site, "torchaudio", code)
    found = run("torchaudio")
    assert found.state == "warn"
    assert found.detail.startswith(f"installed but broken: {detail}")
    assert found.detail.isprintable()
    assert "pip uninstall torchaudio" in found.remedy


@pytest.mark.parametrize("needs", ["torch==2.1.0", "torch (==2.1.0)", "torch==2.1.0+cpu ; python_version > '3'"])
def test_a_package_built_for_another_torch_is_named(site, needs):
    install(site, "torchvision", needs=needs)
    found = run("torchvision")
    assert found.state == "warn"
    assert found.detail.startswith("built for torch 2.1.0, but torch 2.")
    assert "pip uninstall torchvision" in found.remedy


def test_a_torch_that_only_an_extra_asks_for_is_no_fault(site):
    install(site, "torchmetrics", needs="torch==2.1.0 ; extra == 'typing'")
    assert run("torchmetrics").state == "ok"


def test_a_package_built_for_this_torch_or_any_is_fine(site):
    install(site, "torchvision", needs=f"torch=={torch.__version__.partition('+')[0]}")
    install(site, "torchaudio", needs="torch>=1.0")
    assert run("torchvision").state == run("torchaudio").state == "ok"


def test_a_torch_that_does_not_import_fails_once_and_is_not_blamed_on_others(site, monkeypatch):
    install(site, "torch", "raise OSError('libtorch_cpu.so: cannot open shared object file')")
    install(site, "torchvision")
    findings = {finding.name: finding for finding in examine()}
    assert [name for name, finding in findings.items() if finding.state == "fail"] == ["torch imports"]
    assert "libtorch_cpu.so" in findings["torch imports"].detail
    assert findings["torchvision"].detail == findings["gloo"].detail == "not checked: torch does not import"
    assert findings["folder"].state == "ok"


def test_old_python_and_old_torch_fail(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    assert doctor._python() == Finding("python", "fail", "Python 3.10.9", "use Python 3.11 or newer")
    for version, state in [("2.9.1+cu128", "fail"), ("1.13", "fail"), ("2.10.0a0+git1", "ok"), ("3.0.0", "ok")]:
        monkeypatch.setattr(torch, "__version__", version)
        found = run("torch")
        assert found.state == state
        assert version in found.detail
        assert state == "ok" or "CVE-2026-24747" in found.detail


def test_a_cuda_build_without_a_device_is_a_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    found = run("device")
    assert (found.state, found.detail) == ("warn", "torch is built for CUDA 12.8 but sees no device")
    assert "nvidia-smi" in found.remedy
    assert run("torch").detail.endswith("built for CUDA 12.8")
    monkeypatch.setattr(torch.version, "cuda", None)
    there = Path("/dev/nvidia0").exists()
    assert run("device").state == ("warn" if there else "ok")


def test_more_threads_than_cores_are_a_warning(monkeypatch):
    have = cores()
    assert 1 <= have <= (os.cpu_count() or 1)
    for value, state in [(str(have), "ok"), (str(have + 1), "warn"), ("many", "warn"), ("-1", "warn")]:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        found = run("threads")
        assert found.state == state
        assert state != "ok" or found.detail.startswith("1 thread on ")
        assert state == "ok" or f"set it to {have} or less" in found.remedy
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: have + 1)
    assert run("threads").remedy == f"set OMP_NUM_THREADS={have}"


@pytest.mark.parametrize(("quota", "count"), [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("", 8)])
def test_a_containers_quota_counts_as_its_cores(monkeypatch, quota, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda _: quota)
    assert cores() == count


def test_a_broken_bridge_to_numpy_fails(monkeypatch):
    def unavailable(_: torch.Tensor) -> None:
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch.Tensor, "numpy", unavailable)
    found = run("numpy")
    assert (found.state, found.detail) == ("fail", "torch and numpy do not share memory: Numpy is not available")
    monkeypatch.setattr(torch.Tensor, "numpy", lambda _: np.zeros(1))
    assert run("numpy").detail == "a 2 came back from numpy as [1.0]"


def test_safetensors_that_change_what_they_store_fail(monkeypatch):
    import safetensors.torch as library

    monkeypatch.setattr(library, "load_file", lambda _: {"float": torch.zeros(3), "whole": torch.zeros(2)})
    assert run("safetensors").state == "fail"
    monkeypatch.delattr(library, "save_file")
    found = run("safetensors")
    assert found.state == "fail"
    assert found.detail.startswith("the check broke off: ImportError")


def test_a_matrix_product_that_differs_is_a_warning(monkeypatch):
    noise = iter([0.0, 1e-7])
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: torch.full((1,), next(noise)))
    assert run("determinism").state == "warn"


def test_a_folder_that_is_full_or_not_writable_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) in run("folder").detail
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 10**6))
    assert run("folder").detail == f"3 MB are free below {tmp_path}"
    assert run("folder").state == "warn"

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    found = run("folder")
    assert (found.state, found.remedy) == ("fail", "use another folder, or --out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_does_not_stop_the_doctor(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    found = run("folder")
    assert found.state == "fail"
    assert "FileNotFoundError" in found.detail


def test_a_missing_compiler_or_header_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("compiler").detail == "no C++ compiler: torch.compile will fail"
    compiler = tmp_path / "my-g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "my-g++ -O2")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert run("compiler").detail == "my-g++, but no Python.h: torch.compile will fail"
    (tmp_path / "Python.h").touch()
    assert run("compiler") == Finding("compiler", "ok", "my-g++ and Python.h, for torch.compile")


def test_an_absent_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(EXTRAS, "more", ("os", "nothing_such"))
    found = doctor._extra("more", EXTRAS["more"])()
    assert found.state == "ok"
    assert found.detail == "not installed (nothing_such)"
    assert found.remedy == "if you want more: pip install 'selfdistill[more]'"
    assert doctor._extra("more", ("os",))().remedy == ""


def test_gloo_that_does_not_start_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "_TRY_GLOO", "raise RuntimeError('unable to resolve hostname')")
    found = run("gloo")
    assert found.state == "warn"
    assert found.detail == "a process group does not start: RuntimeError: unable to resolve hostname"


@pytest.mark.parametrize("error", [ValueError("two\nlines"), SystemExit(1), MemoryError()])
def test_a_check_that_breaks_off_becomes_a_failure(error):
    def check() -> Finding:
        raise error

    found = doctor._run_check("this", check)
    assert (found.name, found.state) == ("this", "fail")
    assert found.detail.startswith(f"the check broke off: {type(error).__name__}")
    assert "\n" not in found.detail
