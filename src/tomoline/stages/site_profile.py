"""`tomoline init-profile`: the SLURM profile with this site's partitions, asked of `sinfo`.

The profile that is shipped (profiles/slurm/config.yaml) is copied line by line, comments and all;
only the partitions `cpu` and `gpu`, the account, requests for a GPU where there is none, and run
times beyond a partition's limit are changed.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tomoline.errors import InputError, ToolError
from tomoline.io.atomic import write_text
from tomoline.stages.project import workflow_root
from tomoline.stages.status import layout

# Partition, state, time limit, nodes, CPUs, memory (MB), GRES, nodes by state, preemption, tier.
SINFO_FORMAT = "%P|%a|%l|%D|%c|%m|%G|%F|%M|%p"
SINFO = ("sinfo", "-h", "-o", SINFO_FORMAT)
TEMPLATE = "profiles/slurm/config.yaml"

_TIMEOUT_SECONDS = 30.0
# A partition with a limit (minutes) below this is for tests, not for work.
_SHORT_MINUTES = 240.0
# The tomogram that "what the rules ask for" is said of: 512 x 512 x 190 voxels as prepared.
_MILLION_VOXELS = 50
_GPU = re.compile(r"(?:^|,)gpu(?::(?P<kind>[^:,()]*[^:,()\d][^:,()]*))?(?::(?P<count>\d+))?")
_PARTITION = re.compile(
    r"^(?P<begin>\s*slurm_partition:\s*)(?P<quote>['\"]?)(?P<name>[\w.-]+)(?P=quote)(?P<end>\s*(#.*)?)$"
)
_ACCOUNT = re.compile(r"^(?P<indent>\s*)(?:#\s*)?slurm_account:\s*(?P<name>[^\s#]+)(?P<end>.*)$")
_REQUEST = re.compile(r"^(?P<indent>\s+)(?P<request>gpu(_model)?:\s*[^#]*?)(?P<end>\s*(#.*)?)$")
_RUNTIME = re.compile(r"^(?P<begin>\s+runtime:\s*)(?P<time>[^\s#]+)(?P<end>\s*(#.*)?)$")
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w-]+):\s*(#.*)?$")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One partition of the cluster: its limit in minutes, its nodes' largest size."""

    name: str
    up: bool
    default: bool
    minutes: float
    nodes: int
    cpus: int
    memory_mb: int
    gpus: int = 0
    gpu_kinds: tuple[str, ...] = ()
    preempt_mode: str = "OFF"
    tier: int = 1


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user asked for; None leaves the choice to what `sinfo` says.

    `gpu_partition` may be "none": run the networks on the CPU.
    """

    account: str | None = None
    cpu_partition: str | None = None
    gpu_partition: str | None = None
    from_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The partitions for jobs without and with a GPU; `train` are cheaper ones for training."""

    cpu: Partition
    gpu: Partition | None
    train: tuple[Partition, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the profile goes, and what snakemake calls it."""

    file: Path
    profile: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written where, and what the user should know."""

    target: Target
    partitions: tuple[Partition, ...]
    choice: Choice
    backup: Path | None
    warnings: tuple[str, ...]


def init_profile(
    wishes: Wishes,
    *,
    project: str | Path = ".",
    folder: str | Path | None = None,
    user: bool = False,
    force: bool = False,
) -> Written:
    """Write a site's profile.

    Parameters
    ----------
    folder:
        A profile's folder, or a project; default: the project's `slurm`, as
        `snakemake --profile slurm` finds it.
    user:
        Write it for all of the user's projects instead, below ~/.config/snakemake.
    force:
        Replace a profile that is there; it is kept beside as `.bak`.

    Raises
    ------
    InputError
        Text that is not what `sinfo` prints, a partition that is not there, a profile that is
        there already, or a folder that cannot be one.
    ToolError
        No `sinfo` on this machine, or it failed.
    """
    root = workflow_root()
    template = (root / TEMPLATE).read_text(encoding="utf-8")
    target = _target(Path(project), Path(folder) if folder else None, user=user, root=root)
    _check_replaceable(target.file, template, force=force)
    source, text = _sinfo(wishes.from_file)
    partitions = parse_sinfo(text, source=source)
    choice = choose(partitions, wishes)
    filled, notes = fill(template, choice, account=wishes.account)
    warnings = [*choice.warnings, *notes, *_time_warnings(choice, filled, root)]
    if wishes.from_file is None:
        warnings += _accounting_warnings(wishes.account)
    backup = _backup(target.file, template)
    write_text(target.file, filled)
    return Written(
        target=target,
        partitions=tuple(partitions),
        choice=choice,
        backup=backup,
        warnings=(*warnings, *_rivals(target.file)),
    )


def parse_sinfo(text: str, *, source: str | Path) -> list[Partition]:
    """Read the lines of `sinfo -h -o FORMAT`; a partition's several kinds of nodes become one.

    Raises
    ------
    InputError
        No line, or one that is not of that form.
    """
    found: dict[str, Partition] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("PARTITION|"):
            continue
        cells = [cell.strip() for cell in line.split("|")]
        try:
            part = _parse_line(cells)
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{source}, line {number}",
                expected=f"ten cells with | between them, as `{_shown(SINFO)}` prints",
                found=repr(line[:100]),
                remedy=f"on the cluster's login node: {_shown(SINFO)} > sinfo.txt",
            ) from error
        known = found.get(part.name)
        found[part.name] = _joined(known, part) if known else part
    if not found:
        raise InputError(
            source,
            expected="a line for each partition of the cluster",
            found="none",
            remedy="run it on the cluster's login node, where `sinfo` lists partitions",
        )
    return list(found.values())


def choose(partitions: Sequence[Partition], wishes: Wishes) -> Choice:
    """Choose the partitions: those wished for, else by GPUs, preemption, time limit and default.

    Raises
    ------
    InputError
        A partition wished for is not there, or none is up.
    """
    warnings: list[str] = []
    up = [part for part in partitions if part.up and part.nodes]
    if not up:
        raise InputError(
            "sinfo",
            expected="a partition that is up",
            found="none among " + ", ".join(part.name for part in partitions),
            remedy="wait until the cluster is back, or ask its administrators",
        )
    gpu = _choose_gpu(partitions, up, wishes, warnings)
    cpu = _choose_cpu(partitions, up, wishes, warnings)
    train = [part for part in up if part.gpus and _preemptible(part, up) and part != gpu]
    return Choice(cpu=cpu, gpu=gpu, train=tuple(train), warnings=tuple(warnings))


def fill(template: str, choice: Choice, *, account: str | None = None) -> tuple[str, list[str]]:
    """Return the template with a site's partitions and account, and notes on what was changed.

    Raises
    ------
    InputError
        An account that is no name, or a template without the lines to be filled in.
    """
    if account is not None and not re.fullmatch(r"[\w.@:+-]+", account):
        raise InputError(
            "--account", expected="an account's name", found=repr(account),
            remedy="`sacctmgr show associations user=$USER` lists yours",
        )  # fmt: skip
    filled = [_filled(line, choice, account) for line in template.splitlines()]
    lines, notes = _limited(filled, choice)
    lines = _with_train(lines, choice)
    text = "\n".join([*_heading(choice), *lines]) + "\n"
    _check(text, template, choice, account)
    return text, notes


def format_written(written: Written) -> str:
    """Say which partitions there are, which were chosen, what to mind, and how to use it."""
    choice = written.choice
    roles = {choice.cpu.name: ["cpu"]}
    if choice.gpu is not None:
        roles.setdefault(choice.gpu.name, []).append("gpu")
    table = [["partition", "taken for", "time limit", "CPUs", "memory", "GPUs", "nodes"]]
    for part in written.partitions:
        kinds = f" {'/'.join(part.gpu_kinds)}" if part.gpu_kinds else ""
        table.append([
            part.name + ("" if part.up else " (down)"), " and ".join(roles.get(part.name, [])),
            _limit(part.minutes), str(part.cpus), f"{part.memory_mb / 1000:.0f} GB",
            f"{part.gpus}{kinds}" if part.gpus else "", str(part.nodes),
        ])  # fmt: skip
    lines = layout(table)
    lines += ["", *(f"Mind: {warning}" for warning in written.warnings)]
    lines += [f"Wrote {written.target.file}"]
    if written.backup:
        lines.append(f"The one before is {written.backup}")
    lines += written.target.notes
    lines += ["", "Look through it, then:", f"  snakemake --profile {written.target.profile}"]
    return "\n".join(lines) + "\n"


# --- where it goes -----------------------------------------------------------------------------


def _target(project: Path, folder: Path | None, *, user: bool, root: Path) -> Target:
    if user:
        if folder is not None:
            raise InputError(
                f"{folder} --user", expected="a folder or --user", found="both",
                remedy="leave one out",
            )  # fmt: skip
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        note = "It is used in every folder that has no `slurm` of its own."
        return Target(file=base / "snakemake/slurm/config.yaml", profile="slurm", notes=(note,))
    if folder is not None:
        if not _is_project(folder):
            return Target(file=folder / "config.yaml", profile=str(folder))
        project = folder
    if project.resolve() == root.resolve():
        # `slurm` is the shipped profile here, which an update may replace
        return Target(file=project / "profiles/site/config.yaml", profile="profiles/site")
    if not _is_project(project):
        raise InputError(
            project,
            expected="a project folder (with config/config.yaml), or a folder for the profile",
            found="neither",
            remedy="tomoline init FOLDER makes a project; --user writes it for all of yours",
        )
    target = project / "slurm"
    if not target.resolve().is_relative_to(project.resolve()):
        raise InputError(
            target,
            expected="a folder of this project's own",
            found=f"a link to {target.resolve()}",
            remedy="remove the link and repeat the command, or name a folder for the profile",
        )
    return Target(file=target / "config.yaml", profile="slurm")


def _is_project(folder: Path) -> bool:
    return (folder / "config" / "config.yaml").is_file()


def _check_replaceable(file: Path, template: str, *, force: bool) -> None:
    """Refuse to replace a profile that somebody may have worked on."""
    if file.exists() and not force and file.read_text(encoding="utf-8") != template:
        raise InputError(
            file,
            expected="no profile there yet",
            found="one that differs from the shipped one",
            remedy="edit that one, or replace it with --force (it is kept as .bak)",
        )


def _backup(file: Path, template: str) -> Path | None:
    if not file.exists() or file.read_text(encoding="utf-8") == template:
        return None
    names = (file.with_name(f"{file.name}.bak{n or ''}") for n in range(1000))
    backup = next(path for path in names if not path.exists())
    shutil.copy2(file, backup)
    return backup


def _rivals(file: Path) -> list[str]:
    """Files beside a profile that snakemake would prefer to it."""
    rivals = [*file.parent.glob("config.v*+.yaml"), *file.parent.glob("profile*.yaml")]
    return [f"{path} is there too, and snakemake may read that one instead" for path in rivals]


# --- what there is -----------------------------------------------------------------------------


def _sinfo(file: Path | None) -> tuple[str, str]:
    """Return where the text comes from, and the text."""
    if file is None:
        return _shown(SINFO), _output(SINFO)
    try:
        return str(file), file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            file, expected="text that sinfo printed", found=str(error),
            remedy=f"on the cluster's login node: {_shown(SINFO)} > sinfo.txt",
        ) from error  # fmt: skip


def _output(command: Sequence[str]) -> str:
    """Run a program of SLURM; ToolError with the remedy where it is not there or fails."""
    remedy = (
        f"Remedy: run this on the cluster's login node; or there {_shown(SINFO)} > sinfo.txt, and "
        "here --from-file sinfo.txt"
    )
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ToolError(f"SLURM's program {command[0]} was not found on PATH. {remedy}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{command[0]} did not answer ({error}). {remedy}") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}"
        raise ToolError(f"{command[0]} failed: {said}. {remedy}")
    return done.stdout


def _parse_line(cells: Sequence[str]) -> Partition:
    name, state, limit, _, cpus, memory, gres, by_state, mode, tier = cells
    if not re.fullmatch(r"[\w.@:+-]+\*?", name):
        raise ValueError(name)
    nodes = [_count(part) for part in by_state.split("/")]
    gpus = list(_GPU.finditer(gres))
    return Partition(
        name=name.removesuffix("*"),
        default=name.endswith("*"),
        up=state.lower() == "up",
        minutes=_minutes(limit),
        nodes=nodes[3],
        cpus=_count(cpus),
        memory_mb=_count(memory),
        gpus=sum(int(match["count"] or 1) for match in gpus),
        gpu_kinds=tuple(dict.fromkeys(match["kind"] for match in gpus if match["kind"])),
        preempt_mode=mode.upper(),
        tier=int(tier),
    )


def _joined(one: Partition, other: Partition) -> Partition:
    return replace(
        one,
        nodes=one.nodes + other.nodes,
        cpus=max(one.cpus, other.cpus),
        memory_mb=max(one.memory_mb, other.memory_mb),
        gpus=max(one.gpus, other.gpus),
        gpu_kinds=tuple(dict.fromkeys((*one.gpu_kinds, *other.gpu_kinds))),
    )


def _count(text: str) -> int:
    """Read 64, 16+ (at least) or 2.5K, as sinfo writes numbers."""
    match = re.fullmatch(r"([\d.]+)([KM]?)\+?", text)
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * {"": 1, "K": 1000, "M": 1_000_000}[match[2]])


def _minutes(text: str) -> float:
    """Read SLURM's days-hours:minutes:seconds (or minutes:seconds, or minutes) as minutes."""
    if text.lower() in ("infinite", "unlimited"):
        return math.inf
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:  # days-hours, days-hours:minutes, days-hours:minutes:seconds
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def _accounting_warnings(account: str | None) -> list[str]:
    """What the cluster says of accounting; silent where it does not answer."""
    warnings = []
    if shutil.which("sacct") is None:
        warnings.append(
            "the program sacct is not on this machine: start snakemake on a node that has it, or "
            "states of jobs that ended while nobody looked cannot be asked for"
        )
    config = _asked(("scontrol", "show", "config"))
    kind = re.search(r"^AccountingStorageType\s*=\s*(\S+)", config, re.M)
    if kind and (kind[1].endswith("/none") or kind[1] == "(null)"):
        warnings.append(
            "this cluster keeps no accounting: SLURM forgets a job some minutes after its end, so "
            "leave snakemake running while jobs do"
        )
    enforced = re.search(r"^AccountingStorageEnforce\s*=.*(associations|safe|limits)", config, re.M)
    if enforced and account is None:
        who = f"user={getpass.getuser()}"
        listed = _asked(("sacctmgr", "-nP", "show", "associations", who, "format=account"))
        own = ", ".join(dict.fromkeys(listed.split()))
        warnings.append(
            "this cluster charges accounts; without --account your default one is taken"
            + (f" (yours: {own})" if own else "")
        )
    return warnings


def _asked(command: Sequence[str]) -> str:
    try:
        return _output(command)
    except ToolError:  # what is only good to know is not worth an error
        return ""


# --- which are taken ---------------------------------------------------------------------------


def _preemptible(part: Partition, up: Sequence[Partition]) -> bool:
    """Whether jobs there give way to those of the ordinary partitions.

    sinfo shows the cluster's mode for every partition, also for those that nothing goes before, so
    its tier has to be lower too: than that of the default partition, where there is one.
    """
    tiers = [other.tier for other in up if other.default] or [other.tier for other in up]
    return part.preempt_mode not in ("OFF", "") and part.tier < max(tiers)


def _named(partitions: Sequence[Partition], name: str, option: str) -> Partition:
    for part in partitions:
        if part.name == name:
            return part
    raise InputError(
        f"{option} {name}",
        expected="one of " + ", ".join(part.name for part in partitions),
        found=repr(name),
        remedy="name a partition that `sinfo` lists",
    )


def _choose_gpu(
    partitions: Sequence[Partition], up: Sequence[Partition], wishes: Wishes, warnings: list[str]
) -> Partition | None:
    wish = wishes.gpu_partition
    if wish == "none":
        return None
    if wish is not None:
        gpu = _named(partitions, wish, "--gpu-partition")
        if not gpu.gpus:
            warnings.append(f"{wish} shows no GPU (GRES); jobs that ask for one would be refused")
        return gpu
    able = [part for part in up if part.gpus]
    if not able:
        warnings.append(
            "no partition with GPUs is up: the networks run on CPUs, which takes many times longer"
        )
        return None
    gpu = max(able, key=lambda part: (not _preemptible(part, up), part.minutes, part.nodes))
    if _preemptible(gpu, up):
        warnings.append(
            f"every partition with GPUs can be preempted; {gpu.name} is taken, and a job that was "
            "stopped is queued again"
        )
    return gpu


def _choose_cpu(
    partitions: Sequence[Partition], up: Sequence[Partition], wishes: Wishes, warnings: list[str]
) -> Partition:
    if wishes.cpu_partition is not None:
        return _named(partitions, wishes.cpu_partition, "--cpu-partition")
    cpu = max(
        up,
        key=lambda part: (
            not part.gpus,
            part.minutes >= _SHORT_MINUTES,
            not _preemptible(part, up),
            part.default,
            part.minutes,
            part.nodes,
        ),
    )
    if cpu.gpus:
        warnings.append(
            f"every partition that is up has GPUs: jobs that need none go to {cpu.name} too"
        )
    elif _preemptible(cpu, up):
        warnings.append(f"{cpu.name} can be preempted; a job that was stopped is queued again")
    return cpu


# --- what is written ---------------------------------------------------------------------------


def _heading(choice: Choice) -> list[str]:
    gpu = choice.gpu
    lines = [
        "# Written by `tomoline init-profile` for this site; yours to edit.",
        f"# Without GPU: {choice.cpu.name}, at most {_limit(choice.cpu.minutes)} a job.",
        f"# With GPU: {gpu.name}, at most {_limit(gpu.minutes)} a job."
        if gpu
        else "# With GPU: none was found; the networks run on CPUs.",
        "#",
    ]
    return lines


def _filled(line: str, choice: Choice, account: str | None) -> str:
    """Return one line of the template with the site's partition or account in its place."""
    names = {"cpu": choice.cpu.name, "gpu": (choice.gpu or choice.cpu).name}
    match = _PARTITION.match(line)
    if match and match["name"] in names:
        return f"{match['begin']}{_scalar(names[match['name']])}{match['end']}"
    match = _ACCOUNT.match(line)
    if match and account:
        return f"{match['indent']}slurm_account: {_scalar(account)}{match['end']}"
    match = _REQUEST.match(line)
    if match and choice.gpu is None:
        return f"{match['indent']}# {match['request']} # no partition with GPUs was found"
    return line


def _limited(lines: Sequence[str], choice: Choice) -> tuple[list[str], list[str]]:
    """Lower run times that a partition would refuse."""
    notes: list[str] = []
    limits = {part.name: part.minutes for part in (choice.cpu, choice.gpu) if part is not None}
    partitions = _partitions_of(yaml.safe_load("\n".join(lines)))

    def lowered(line: str, rule: str) -> str:
        match = _RUNTIME.match(line)
        asked = _runtime(match["time"]) if match else None
        limit = limits.get(partitions.get(rule, ""), math.inf)
        if match is None or asked is None or asked <= limit:
            return line
        notes.append(
            f"{rule}: {partitions[rule]} ends jobs after {_limit(limit)}, so its run time is set "
            f"to that instead of {_limit(asked)}"
        )
        return f"{match['begin']}{int(limit)} # the partition's limit; was {match['time']}"

    return [lowered(line, rule) for line, rule in _rules_of(lines)], notes


def _with_train(lines: Sequence[str], choice: Choice) -> list[str]:
    """Propose preemptible partitions for training, which goes on from its checkpoint."""
    result = []
    for line, rule in _rules_of(lines):
        result.append(line)
        if rule == "train" and _PARTITION.match(line):
            indent = line[: len(line) - len(line.lstrip())]
            result += [
                f"{indent}# slurm_partition: {_scalar(part.name)} # can be preempted; "
                f"{_limit(part.minutes)}; training goes on from its checkpoint"
                for part in choice.train
            ]
    return result


def _rules_of(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Each line with the rule of `set-resources` it belongs to, or `default-resources`, or ''."""
    section = rule = ""
    result = []
    for line in lines:
        key = _KEY.match(line)
        if line and not line[0].isspace() and not line.startswith("#"):
            section, rule = (key["key"] if key else ""), ""
        elif key and section == "set-resources" and len(key["indent"]) == 2:
            rule = key["key"]
        result.append((line, section if section == "default-resources" else rule))
    return result


def _partitions_of(profile: Mapping[str, Any]) -> dict[str, str]:
    """The partition of each rule that a profile names, and of `default-resources`."""
    default = profile.get("default-resources") or {}
    found = {"default-resources": str(default.get("slurm_partition", ""))}
    for rule, resources in (profile.get("set-resources") or {}).items():
        found[rule] = str(resources.get("slurm_partition", found["default-resources"]))
    return found


def _check(text: str, template: str, choice: Choice, account: str | None) -> None:
    """Make sure that what was made by lines is what is meant."""
    raw, filled = yaml.safe_load(template), yaml.safe_load(text)
    names = {"cpu": choice.cpu.name, "gpu": (choice.gpu or choice.cpu).name}
    before, after = _partitions_of(raw), _partitions_of(filled)
    wrong = [rule for rule, name in before.items() if after.get(rule) != names.get(name)]
    if account and (filled.get("default-resources") or {}).get("slurm_account") != account:
        wrong.append("slurm_account")
    if wrong or raw.keys() != filled.keys():
        raise InputError(
            TEMPLATE,
            expected="lines `slurm_partition: cpu` or `gpu`, and `slurm_account:`, to be filled in",
            found="others at " + (", ".join(wrong) or "its keys"),
            remedy="put the shipped file back (git checkout profiles/slurm)",
        )


def _time_warnings(choice: Choice, profile: str, root: Path) -> list[str]:
    """Say where a tomogram of ordinary size asks for more time than a partition gives."""
    raw = yaml.safe_load(profile)
    partitions = _partitions_of(raw)
    fixed = {rule for rule, resources in raw["set-resources"].items() if "runtime" in resources}
    times = asked_minutes(root, on_gpu=choice.gpu is not None)
    asked = {rule: time for rule, time in times.items() if rule not in fixed}
    warnings = []
    for part in dict.fromkeys(p for p in (choice.cpu, choice.gpu) if p is not None):
        rules = [
            rule
            for rule in asked
            if partitions.get(rule, partitions["default-resources"]) == part.name
        ]
        # rules of one partition may run in one job, whose time is then the sum of theirs
        base = sum(asked[rule][0] for rule in rules)
        slope = sum(asked[rule][1] for rule in rules)
        need = base + slope * _MILLION_VOXELS
        if need > part.minutes:
            warnings.append(
                f"{part.name} ends jobs after {_limit(part.minutes)}, and a tomogram of "
                f"{_MILLION_VOXELS} million voxels (as prepared) asks for up to {_limit(need)} "
                "there. It is given no more than the partition's, and is ended if it needs more: "
                "take a partition with a longer limit, or `tiling: {shards: 4}` in config.yaml"
            )
    return warnings


def asked_minutes(root: Path, *, on_gpu: bool) -> dict[str, tuple[float, float]]:
    """What the rules ask for: minutes, and minutes a million voxels more, read from their files.

    Rules that run networks ask for less where the profile gives them a GPU.
    """
    asked = {}
    for file in sorted((root / "workflow" / "rules").glob("*.smk")):
        text = file.read_text(encoding="utf-8")
        for rule, body in re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", text, re.M | re.S):
            time = re.search(
                r"runtime=minutes\(([\d.]+)(?:,\s*([\d.]+))?(?:,\s*gpu=([\d.]+))?\)", body
            )
            if time:
                slope = time[3] if on_gpu and time[3] else time[2]
                asked[rule] = (float(time[1]), float(slope or 0))
    return asked


def _runtime(text: str) -> float | None:
    """Minutes of `90`, `90m`, `"4h"`; None where it is an expression."""
    match = re.fullmatch(r"['\"]?(\d+(?:\.\d+)?)([smhd]?)['\"]?", text)
    if match is None:
        return None
    return float(match[1]) * {"s": 1 / 60, "": 1, "m": 1, "h": 60, "d": 1440}[match[2]]


def _limit(minutes: float) -> str:
    if math.isinf(minutes):
        return "no limit"
    if minutes >= 48 * 60:
        return f"{minutes / 1440:.3g} days"
    return f"{minutes / 60:.3g} h" if minutes >= 120 else f"{minutes:.0f} min"


def _scalar(text: str) -> str:
    """Return a name as YAML reads it back as text (not `no` or 12 as something else)."""
    return text if yaml.safe_load(text) == text else json.dumps(text)


def _shown(command: Sequence[str]) -> str:
    return " ".join(f"'{part}'" if "|" in part else part for part in command)
