"""A real SLURM of several nodes on one machine, without systemd, for tests.

munge, MariaDB, slurmdbd, slurmctld and one slurmd a node run as ordinary child processes in a
folder of their own under the system's temporary folder, on free ports, with their own munge key: a
SLURM that the machine may have already is neither used nor disturbed. Two partitions share the GPU
nodes, `gpu` and `gpu_low`, whose jobs make way for those of `gpu`. A GPU is a copy of the null
device.

Every process of such a cluster, jobs included, carries the cluster's configuration file in its
environment (SLURM_CONF), which is how `stop` finds them all, also those that a test run left
behind when it was killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

PACKAGES = "slurm-wlm slurmdbd munge mariadb-server"
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db")
FOLDER_PREFIX = "tomoline-slurm-"
CPU_NODES = ("cpu1", "cpu2")
GPU_NODES = ("gpu1", "gpu2")
NODES = CPU_NODES + GPU_NODES
GPUS_PER_NODE = 2
# How long a test waits for what surely comes, so that only one that fails takes so long: the tests
# share the processors with another process and with all jobs of the cluster.
PATIENCE_SECONDS = 900.0

# The names that sacct may print last for a job that will not run again by itself.
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "DEADLINE",
         "BOOT_FAIL"}  # fmt: skip

SLURM_CONF = """\
ClusterName=tomoline
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[slurmctld]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=60
InactiveLimit=0
KillWait=3
MinJobAge=300
MaxJobCount=5000
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=3,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
DefMemPerCPU=100
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=UsePss,OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[slurmdbd]}
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
{nodes}
PartitionName=cpu Nodes=cpu[1-2] Default=YES MaxTime=2-0 DefaultTime=10 State=UP PriorityTier=10
PartitionName=gpu Nodes=gpu[1-2] MaxTime=2-0 DefaultTime=10 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=gpu_low Nodes=gpu[1-2] MaxTime=2-0 DefaultTime=10 State=UP PriorityTier=1 \
PreemptMode=REQUEUE
"""

# More CPUs and memory than there are (config_overrides): jobs wait for these numbers, not for time.
NODE_CONF = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 Boards=1 "
    "SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=64000 {gres} State=UNKNOWN"
)

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[slurmdbd]}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[mariadbd]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""

DATABASE = """\
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
"""


class ClusterError(RuntimeError):
    """The cluster could not be started, or did not do what was asked of it."""


def missing() -> str:
    """What keeps a cluster from being started here; empty if nothing does."""
    absent = [name for name in PROGRAMS if program(name) is None]
    if absent:
        return (
            f"SLURM is not installed here (no {', '.join(absent)}): apt-get install "
            f"--no-install-recommends {PACKAGES}"
        )
    return "" if os.geteuid() == 0 else "the emulated nodes need root"


def program(name: str) -> str | None:
    """The path of a program, daemons' folders included."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Ask until the condition holds; after `seconds` raise ClusterError with `what`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ClusterError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.2)


@dataclass(frozen=True)
class Job:
    """One submission as sacct tells it; a requeued job has a row for each time it ran."""

    id: str
    name: str
    state: str
    partition: str
    tres: dict[str, str]
    comment: str
    submit: str
    start: str
    end: str
    nodes: str
    folder: str

    @property
    def gpus(self) -> int:
        """How many GPUs were allocated."""
        return int(self.tres.get("gres/gpu", "0"))

    @property
    def memory_mb(self) -> float:
        """The memory that was allocated."""
        given = self.tres.get("mem", "0M")
        return float(given[:-1]) * {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1048576.0}[given[-1]]


FORMAT = "JobIDRaw,JobName,State,Partition,AllocTRES,Comment,Submit,Start,End,NodeList,WorkDir"


def job_of(line: str) -> Job:
    """A line of `sacct --parsable2 --format FORMAT`; `CANCELLED by 0` becomes `CANCELLED`."""
    fields = line.split("|")
    tres = dict(item.split("=", 1) for item in fields[4].split(",") if item)
    state = fields[2].split()[0]
    return Job(*fields[:2], state, fields[3], tres, *fields[5:11])


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A port for each name that nobody listens on, below those that the system gives away."""
    ports: dict[str, int] = {}
    candidates = random.SystemRandom().sample(range(18000, 30000), 500)
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports[names[len(ports)]] = port
        if len(ports) == len(names):
            return ports
    raise ClusterError("no free ports")


def started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; empty where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def parent(pid: int) -> int:
    """The number of a process's parent; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def processes(folder: Path) -> dict[int, bytes]:
    """The processes of the cluster in a folder, jobs included, with their environment."""
    mark = f"SLURM_CONF={folder / 'slurm.conf'}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes()
                if mark in environment.split(b"\0"):
                    found[int(entry.name)] = environment
    return found


def end_processes(folder: Path, grace_seconds: float = 10.0) -> None:
    """End all processes of the cluster in a folder: asked first, then killed."""
    asked: set[int] = set()
    end = time.monotonic() + grace_seconds
    while alive := [pid for pid in processes(folder) if started(pid)]:
        late = time.monotonic() > end
        for pid in alive:
            if late or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        if time.monotonic() > end + grace_seconds:
            raise ClusterError(f"processes {alive} of {folder} do not end")
        time.sleep(0.1)


def clear_leftovers() -> list[Path]:
    """End clusters whose test run is no more, and remove their folders; returns these."""
    gone = []
    for folder in Path(tempfile.gettempdir()).glob(FOLDER_PREFIX + "*"):
        try:
            pid, ticks = (folder / "owner").read_text().split()
        except (OSError, ValueError):
            continue  # another run is just making it
        if started(int(pid)) != ticks:
            end_processes(folder)
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(folder)
    return gone


@dataclass
class Cluster:
    """A running cluster: ask, disturb, and stop it."""

    folder: Path
    ports: dict[str, int]
    begun: datetime = field(default_factory=datetime.now)
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    # -- life ---------------------------------------------------------------------------------

    @classmethod
    def start(cls) -> Cluster:
        """Start all daemons; returns when every node is idle."""
        if reason := missing():
            raise ClusterError(reason)
        clear_leftovers()
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        folder.chmod(0o755)  # munge refuses a socket that not all can reach
        (folder / "owner").write_text(f"{os.getpid()} {started(os.getpid())}")
        cluster = cls(folder, free_ports(["slurmctld", "slurmdbd", "mariadbd", *NODES]))
        try:
            cluster._configure()
            cluster._start_munge()
            cluster._start_accounting()
            cluster.start_daemon("slurmctld")
            for node in NODES:
                cluster.start_daemon(node)
            cluster.wait_for_nodes(NODES)
        except BaseException as error:
            logs = cluster.logs()
            cluster.stop()
            if isinstance(error, ClusterError):
                raise ClusterError(f"{error}\n{logs}") from error
            raise
        return cluster

    def stop(self) -> None:
        """End everything that was started, jobs included, and remove the folder."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.cancel_all()
        for name in (*NODES, "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.end_daemon(name)
        end_processes(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self, lines: int = 15) -> str:
        """The last lines of every daemon's log."""
        paths = sorted((self.folder / "log").iterdir())
        tails = [path.read_text(errors="replace").splitlines()[-lines:] for path in paths]
        return "\n".join("\n".join([f"-- {p.name}", *t]) for p, t in zip(paths, tails, strict=True))

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to talk to this cluster and no other."""
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def _configure(self) -> None:
        for name in ("state", "log", "dev", "munge", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir()
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            NODE_CONF.format(
                name=name, host=host, port=self.ports[name],
                gres=f"Gres=gpu:fake:{GPUS_PER_NODE}" if name in GPU_NODES else "",
            )
            for name in NODES
        )  # fmt: skip
        self._write("slurm.conf", SLURM_CONF.format(
            host=host, folder=self.folder, ports=self.ports, nodes=nodes))  # fmt: skip
        self._write("slurmdbd.conf", SLURMDBD_CONF.format(folder=self.folder, ports=self.ports))
        devices = [self.folder / "dev" / f"gpu{k}" for k in range(GPUS_PER_NODE)]
        for device in devices:  # SLURM wants character devices behind a count of GPUs
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
        files = f"{self.folder}/dev/gpu[0-{GPUS_PER_NODE - 1}]"
        self._write("gres.conf", f"NodeName=gpu[1-2] Name=gpu Type=fake File={files}\n")

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.touch(0o600)
        path.write_text(text)

    def _start_munge(self) -> None:
        home = self.folder / "munge"
        (home / "key").touch(0o600)
        (home / "key").write_bytes(os.urandom(1024))
        self.start_daemon("munged")
        wait_for((home / "socket").exists, "munge")

    def _start_accounting(self) -> None:
        database = self.folder / "db"
        self.command(
            "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={database}",
            "--auth-root-authentication-method=socket", "--skip-test-db",
        )  # fmt: skip
        self.start_daemon("mariadbd")
        client = ("--no-defaults", f"--socket={self.folder}/mariadb.sock", "--user=root")
        wait_for(lambda: self.works("mariadb-admin", *client, "ping"), "MariaDB")
        self.command("mariadb", *client, "-e", DATABASE)
        self.start_daemon("slurmdbd")
        self.command("sacctmgr", "-i", "add", "cluster", "tomoline")
        self.command("sacctmgr", "-i", "add", "account", "lab", "Cluster=tomoline")
        self.command("sacctmgr", "-i", "add", "user", "root", "Account=lab", "Cluster=tomoline")

    def start_daemon(self, name: str) -> None:
        """Start a daemon (`slurmctld`, `slurmdbd`) or the slurmd of a node and wait for it."""
        commands: Mapping[str, Sequence[str]] = {
            "munged": [
                "munged", "--foreground", "--force",
                *(f"--{key}={self.folder}/munge/{value}" for key, value in {
                    "socket": "socket", "key-file": "key", "log-file": "log",
                    "pid-file": "pid", "seed-file": "seed"}.items()),
            ],
            "mariadbd": [
                "mariadbd", "--no-defaults", "--user=root", f"--datadir={self.folder}/db",
                f"--socket={self.folder}/mariadb.sock", f"--port={self.ports['mariadbd']}",
                f"--pid-file={self.folder}/mariadbd.pid", "--bind-address=127.0.0.1",
                "--skip-name-resolve", "--innodb-buffer-pool-size=32M",
                "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
            ],
            "slurmdbd": ["slurmdbd", "-D"],
            "slurmctld": ["slurmctld", "-D", "-i"],
        }  # fmt: skip
        command = commands.get(name, ["slurmd", "-D", "-N", name])
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [program(command[0]) or command[0], *command[1:]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=self.folder, env={**os.environ, **self.environment},
            )  # fmt: skip
        if name == "slurmctld":
            wait_for(lambda: "is UP" in self.says("scontrol", "ping"), name)
        if name == "slurmdbd":
            wait_for(lambda: self.works("sacctmgr", "-n", "show", "cluster"), name)

    def end_daemon(self, name: str, *, how: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon and wait for it; killed where it does not listen."""
        daemon = self.daemons.pop(name, None)
        if daemon is None or daemon.poll() is not None:
            return
        daemon.send_signal(signal.SIGCONT)
        daemon.send_signal(how)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    # -- questions ----------------------------------------------------------------------------

    def command(self, *arguments: str) -> str:
        """Run a command against this cluster; its output. Raises ClusterError where it fails."""
        done = self._run(arguments)
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def says(self, *arguments: str) -> str:
        """What a command says; empty where it fails."""
        done = self._run(arguments)
        return done.stdout if done.returncode == 0 else ""

    def works(self, *arguments: str) -> bool:
        """Whether a command succeeds."""
        return self._run(arguments).returncode == 0

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program(arguments[0]) or arguments[0], *arguments[1:]],
            env={**os.environ, **self.environment}, capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip

    def jobs(self, folder: Path | None = None) -> list[Job]:
        """All submissions, or those made from a folder, oldest first, from sacct.

        A job that was requeued has a row for each time that it ran.
        """
        text = self.command(
            "sacct", "--allusers", "--allocations", "--duplicates", "--noheader", "--parsable2",
            f"--starttime={self.begun:%Y-%m-%dT%H:%M:%S}", f"--format={FORMAT}",
        )  # fmt: skip
        found = [job_of(line) for line in text.splitlines()]
        chosen = [job for job in found if folder is None or Path(job.folder) == folder.resolve()]
        return sorted(chosen, key=lambda job: (int(job.id), job.submit))

    def queue(self, *options: str) -> dict[str, str]:
        """Jobs waiting and running now: number and state."""
        text = self.command("squeue", "--noheader", "--format=%A %T", *options)
        return dict(line.split(maxsplit=1) for line in text.splitlines())

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job (`scontrol show job`)."""
        text = self.command("scontrol", "--oneliner", "show", "job", number)
        return dict(re.findall(r"(\w[\w/:]*)=(\S*)", text))

    def wait_for_state(self, number: str, *states: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until a job is in one of the states."""
        what = f"job {number} to be {' or '.join(states)}"
        wait_for(lambda: self.job(number).get("JobState") in states, what, seconds)

    def wait_for_nodes(self, nodes: Sequence[str]) -> None:
        """Wait until all these nodes take jobs."""

        def ready() -> bool:
            text = self.says("sinfo", "-h", "-N", "-t", "idle,mix,alloc", "-o", "%N")
            return set(nodes) <= set(text.split())

        wait_for(ready, f"nodes {', '.join(nodes)}")

    # -- disturbances -------------------------------------------------------------------------

    def cancel(self, *numbers: str) -> None:
        """End jobs as a user does, with scancel."""
        self.command("scancel", *numbers)

    def cancel_all(self) -> None:
        """End all jobs and wait until none is left."""
        if self.says("scontrol", "ping").count("is UP"):
            self.says("scancel", "--user=root")
            with contextlib.suppress(ClusterError):
                wait_for(lambda: not self.queue(), "jobs to end", 20)

    def requeue(self, number: str) -> None:
        """Send a running job back to the queue."""
        self.command("scontrol", "requeue", number)

    def lose_node(self, node: str) -> None:
        """Let a node die: its slurmd and all its jobs' processes are killed, and SLURM is told."""
        mark = f"SLURMD_NODENAME={node}".encode()
        found = processes(self.folder)
        jobs = {pid for pid, environment in found.items() if mark in environment.split(b"\0")}
        # A job's keeper (slurmstepd) would tell of its end: it goes before the job itself.
        keepers = {parent(pid) for pid in jobs} & set(found) - jobs
        self.end_daemon(node, how=signal.SIGKILL)
        for pid in [*keepers, *jobs]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def return_node(self, node: str) -> None:
        """Start a lost node again."""
        self.start_daemon(node)
        self.wait_for_nodes([node])

    @contextlib.contextmanager
    def away(self, *daemons: str) -> Iterator[None]:
        """Without some daemons (`slurmctld`, `slurmdbd`), as when their machine restarts."""
        for name in daemons:
            self.end_daemon(name)
        try:
            yield
        finally:
            for name in reversed(daemons):
                self.start_daemon(name)

    @contextlib.contextmanager
    def stalled(self, *daemons: str) -> Iterator[None]:
        """With daemons that take a question and never answer, as when their disk hangs."""
        for name in daemons:
            self.daemons[name].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for name in daemons:
                self.daemons[name].send_signal(signal.SIGCONT)
