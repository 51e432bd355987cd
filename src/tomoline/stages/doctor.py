"""What this machine has, what will therefore not work, and the remedy.

Each check is a function that returns one or more `Check`; none of them raises, because a doctor
that falls over tells nothing. A check is `broken` when the main line cannot run without it and
`absent` or `weak` when only an option is lost or slow.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil
import yaml

from tomoline.errors import TomolineError, ToolError
from tomoline.io import imod
from tomoline.networks.cards import ModelCard, load_card, verify_weights
from tomoline.settings import ModelsSettings, validated
from tomoline.stages.members import numbered

GIB = 1024**3

# distribution: module; what the main line imports
_PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "pandas": "pandas",
    "mrcfile": "mrcfile",
    "starfile": "starfile",
    "h5py": "h5py",
    "connected-components-3d": "cc3d",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "PyYAML": "yaml",
    "matplotlib": "matplotlib",
}
# A 256 x 256 x 128 tomogram needs about this much with the shipped networks.
_LEAST_MEMORY_GIB = 2.0
_LEAST_DISK_GIB = 5.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding: what was looked for, what is there, and what follows from it."""

    name: str
    state: Literal["ok", "absent", "weak", "broken"]
    found: str
    consequence: str = ""
    remedy: str = ""


def examine(project: str | Path = ".") -> list[Check]:
    """Run every check for the project folder `project`; the order is that of the print-out."""
    project = Path(project)
    checks = [_python(), _packages(), *_torch(), _snakemake(), *_slurm(), _imod()]
    checks += [_processors(), _memory(), _disk(project), _results(project), *_models(project)]
    return checks


def exit_code(checks: Sequence[Check]) -> int:
    """0 where the main line can run, else 1."""
    return int(any(check.state == "broken" for check in checks))


def format_checks(checks: Sequence[Check]) -> str:
    """Lay the findings out for a terminal."""
    marks = {"ok": "ok", "absent": "--", "weak": "weak", "broken": "BROKEN"}
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{marks[check.state]:6}  {check.name:{width}}  {check.found}")
        indent = " " * (width + 10)
        if check.consequence:
            lines.append(f"{indent}{check.consequence}")
        if check.remedy:
            lines.append(f"{indent}Remedy: {check.remedy}")
    broken = [check.name for check in checks if check.state == "broken"]
    lines.append("")
    lines.append(
        f"The main line cannot run here: mend {', '.join(broken)}."
        if broken
        else "The main line can run here."
    )
    return "\n".join(lines) + "\n"


def checks_json(checks: Sequence[Check]) -> str:
    """Return the findings as JSON text."""
    value = {"works": exit_code(checks) == 0, "checks": [asdict(check) for check in checks]}
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable}), {platform.system()} " + (
        platform.machine()
    )
    if sys.version_info >= (3, 11):  # noqa: UP036 -- this is the place that tells the user
        return Check(name="python", state="ok", found=found)
    return Check(
        name="python",
        state="broken",
        found=found,
        consequence="tomoline needs Python 3.11 or newer",
        remedy="install a newer Python and run `make setup` again",
    )


def _packages() -> Check:
    missing = [name for name, module in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        return Check(
            name="packages",
            state="broken",
            found="missing: " + ", ".join(missing),
            consequence="the stages that use them will fail",
            remedy="pip install " + " ".join(missing),
        )
    versions = [f"{name} {_version(name)}" for name in ("numpy", "scipy", "mrcfile", "starfile")]
    return Check(name="packages", state="ok", found="all there: " + ", ".join(versions) + ", ...")


def _torch() -> list[Check]:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return [
            Check(
                name="torch",
                state="broken",
                found=f"cannot be imported ({error})",
                consequence="no network can be run or trained",
                remedy="pip install torch (see requirements.lock for the version)",
            )
        ]
    build = torch.version.cuda
    threads = torch.get_num_threads()
    found = f"{torch.__version__}, {threads} threads, " + (
        f"CUDA {build}" if build else "built without CUDA"
    )
    return [Check(name="torch", state="ok", found=found), _gpu(torch), _bfloat16(torch)]


def _gpu(torch: object) -> Check:
    cuda = getattr(torch, "cuda")  # noqa: B009 -- torch is only known at run time here
    if cuda.is_available():
        cards = [cuda.get_device_properties(k) for k in range(cuda.device_count())]
        names = [f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in cards]
        return Check(name="GPU", state="ok", found=", ".join(names))
    listed = _first_line(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    if listed:
        return Check(
            name="GPU",
            state="weak",
            found=f"the driver reports {listed}, but torch cannot use it",
            consequence="segment, classify and training run on the processor, far slower",
            remedy="install the CUDA build of torch (envs/gpu.yaml)",
        )
    return Check(
        name="GPU",
        state="absent",
        found="none",
        consequence="segment and classify run on the processor; `device: cuda` is refused",
        remedy="none needed for small tomograms; for many, use a machine with a GPU",
    )


def _bfloat16(torch: object) -> Check:
    """Say whether mixed precision helps: GPU units, or AMX / AVX-512 BF16 instructions."""
    cuda = getattr(torch, "cuda")  # noqa: B009
    if cuda.is_available():
        supported = bool(cuda.is_bf16_supported())
        where = "GPU"
    else:
        flags = _processor_flags()
        supported = bool({"amx_bf16", "avx512_bf16"} & flags) or "bf16" in flags
        where = "processor"
    if supported:
        return Check(name="bfloat16", state="ok", found=f"the {where} has instructions for it")
    return Check(
        name="bfloat16",
        state="absent",
        found=f"the {where} has no instructions for it",
        consequence="`precision: auto` takes float32, which is exact and slower",
    )


def _snakemake() -> Check:
    if find_spec("snakemake") is None or (program := _program("snakemake")) is None:
        return Check(
            name="snakemake",
            state="broken",
            found="not installed beside this Python",
            consequence="the workflow cannot be run",
            remedy="pip install 'snakemake[reports]>=9.11', and put its folder on PATH",
        )
    return Check(name="snakemake", state="ok", found=f"{_version('snakemake')} ({program})")


def _slurm() -> list[Check]:
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return [
            Check(
                name="SLURM",
                state="absent",
                found="no sbatch or sinfo on PATH",
                consequence="`--profile slurm` will not work; local runs do",
                remedy="run on the cluster's login node to use it",
            )
        ]
    version = _first_line(["sbatch", "--version"]) or "unknown version"
    partitions = _lines(["sinfo", "--noheader", "--format", "%R:%D:%G"])
    if partitions is None:
        return [
            Check(
                name="SLURM",
                state="weak",
                found=f"{version}, but its controller does not answer",
                consequence="jobs cannot be submitted now",
                remedy="ask whether slurmctld is up (`scontrol ping`)",
            )
        ]
    listed = ", ".join(_partition(line) for line in partitions)
    checks = [Check(name="SLURM", state="ok", found=f"{version}; {listed or 'no partition'}")]
    if find_spec("snakemake_executor_plugin_slurm") is None:
        checks.append(
            Check(
                name="SLURM plugin",
                state="weak",
                found="not installed",
                consequence="`--profile slurm` will not work",
                remedy="pip install snakemake-executor-plugin-slurm",
            )
        )
    return checks


def _partition(line: str) -> str:
    name, nodes, gres = [*line.split(":", 2), "", ""][:3]
    return f"{name} ({nodes} nodes{'' if gres in ('', '(null)') else ', ' + gres})"


def _imod() -> Check:
    consequence = "`imod: true` and .mod files are refused; the default route needs no IMOD"
    try:
        folders = {imod.find(program).parent for program in imod.PROGRAMS}
        number = ".".join(str(part) for part in imod.version())
    except ToolError as error:
        found, _, remedy = str(error).partition(" Remedy: ")
        return Check(
            name="IMOD", state="absent", found=found, consequence=consequence, remedy=remedy
        )
    return Check(name="IMOD", state="ok", found=f"{number} ({', '.join(map(str, folders))})")


def _processors() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS")
    found = f"{usable} of {os.cpu_count()} threads" + (
        f", OMP_NUM_THREADS={limit}" if limit else ""
    )
    return Check(name="processors", state="ok", found=found)


def _memory() -> Check:
    memory = psutil.virtual_memory()
    total, available = float(memory.total), float(memory.available)
    limit = _cgroup_limit()
    if limit is not None and limit < total:
        # a container is killed at its own limit, whatever the machine has
        total = limit
        available = min(available, limit - _cgroup_used())
    found = f"{available / GIB:.1f} GiB free of {total / GIB:.1f}"
    if available >= _LEAST_MEMORY_GIB * GIB:
        return Check(name="memory", state="ok", found=found)
    return Check(
        name="memory",
        state="weak",
        found=found,
        consequence=f"below {_LEAST_MEMORY_GIB:g} GiB even small tomograms may be killed",
        remedy="close other programs, or set tiling.size_vox to 64",
    )


def _disk(project: Path) -> Check:
    place = _existing(project / "results")
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.0f} GiB free for results ({place.resolve()})"
    if free >= _LEAST_DISK_GIB * GIB:
        return Check(name="disk", state="ok", found=found)
    return Check(
        name="disk",
        state="weak",
        found=found,
        consequence="intermediate volumes need about four times the size of a tomogram",
        remedy="free some space, or link results/ to a larger disk",
    )


def _results(project: Path) -> Check:
    place = _existing(project / "results")
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".tomoline-doctor-"):
            pass
    except OSError as error:
        return Check(
            name="results",
            state="broken",
            found=f"cannot write in {place.resolve()} ({error.strerror})",
            consequence="no stage can write its output",
            remedy="choose a folder of your own: tomoline init FOLDER",
        )
    return Check(name="results", state="ok", found=f"{place.resolve()} can be written")


def _models(project: Path) -> list[Check]:
    """Say whether the configured networks are there, with the weights their cards were made for."""
    try:
        raw = yaml.safe_load((project / "config" / "config.yaml").read_text(encoding="utf-8"))
        models = validated(ModelsSettings, (raw or {}).get("models", {}), source="models")
    except FileNotFoundError:
        models = ModelsSettings()
    except (TomolineError, yaml.YAMLError, OSError) as error:
        return [
            Check(
                name="config",
                state="broken",
                found=" ".join(str(error).split()),
                consequence="the workflow refuses to start",
                remedy="mend config/config.yaml",
            )
        ]
    folders = {
        "localizer": project / models.path_of("localizer"),
        **numbered("classifier", [project / folder for folder in models.classifiers]),
    }
    checks = [_model(role, folder) for role, folder in folders.items()]
    if all(check.state == "ok" for check in checks):
        localizer, *classifiers = (load_card(folder) for folder in folders.values())
        checks += [check for card in classifiers for check in _fit(localizer, card)]
    return checks


def _fit(localizer: ModelCard, classifier: ModelCard) -> list[Check]:
    """Whether a classifier that sifts the localizer's candidates was fitted to it."""
    said = classifier.not_fitted(localizer)
    return [Check(name="sift", state="weak", found=said)] if said else []


def _model(role: str, folder: Path) -> Check:
    try:
        card = verify_weights(folder)
    except TomolineError as error:
        return Check(
            name=role,
            state="broken",
            found=" ".join(str(error).split()),
            consequence="the workflow refuses to start without it",
        )
    return Check(
        name=role,
        state="ok",
        found=f"{card.name}, {card.n_parameters:,} parameters, hash agrees with the card",
    )


def _existing(path: Path) -> Path:
    """Return `path`, or its nearest parent that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _program(name: str) -> str | None:
    """Find a program on PATH or beside this Python (an environment that was not activated)."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _lines(command: Sequence[str], *, timeout_s: float = 10.0) -> list[str] | None:
    """Run a harmless query; its output's lines, or None where it is missing, slow or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _first_line(command: Sequence[str]) -> str:
    return (_lines(command) or [""])[0]


def _processor_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return set(lines[0].split(":", 1)[1].split()) if lines else set()


def _cgroup_limit() -> float | None:
    return _cgroup_number("memory.max", "memory/memory.limit_in_bytes")


def _cgroup_used() -> float:
    return _cgroup_number("memory.current", "memory/memory.usage_in_bytes") or 0.0


def _cgroup_number(*names: str) -> float | None:
    for name in names:
        path = Path("/sys/fs/cgroup") / name
        try:
            return float(path.read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None
