"""Stand-ins for SLURM's programs, put first on PATH: what they answer is written in a folder.

They are for what a real SLURM (tests/slurm) cannot be made to say at will, or in no short time.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
DISABLED = "Slurm accounting storage is disabled"

# Each program notes its call; fails with the text of <program>.fails, if there is one; and else
# prints <program>.says.
PROGRAM = """\
#!/bin/sh
cd {folder}
echo "{name} $*" >> calls
if [ -e {name}.fails ]; then cat {name}.fails >&2; exit 1; fi
{body}
if [ -e {name}.says ]; then cat {name}.says; fi
exit 0
"""
BODIES = {
    # A job is <id>.script, its state <id>.state; with a file `run` it is started.
    "sbatch": """\
n=100
until mkdir $n.job 2>/dev/null; do n=$((n+1)); done
cat > $n.script
echo 'PENDING|Priority' > $n.state
if [ -e run ]; then
  (cd "$OLDPWD"; SLURM_JOB_ID=$n exec sh {folder}/$n.script > {folder}/$n.log 2>&1) &
fi
echo $n
""",
    "squeue": """\
for file in *.state; do
  if [ -e $file ]; then echo "${{file%.state}}|$(cat $file)"; fi
done
""",
    "scancel": """\
for id in $*; do
  if [ -e $id.state ]; then echo 'CANCELLED|None' > $id.state; fi
done
""",
    "sacct": "",
    "sinfo": "",
    "scontrol": "",
    "sacctmgr": "",
    "sshare": "",
}


@dataclass(frozen=True)
class FakeSlurm:
    """The folder of the stand-ins."""

    folder: Path

    @classmethod
    def install(cls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
        """Write the programs and put them first on PATH."""
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for name, body in BODIES.items():
            quoted = shlex.quote(str(folder))
            text = PROGRAM.format(name=name, folder=quoted, body=body.format(folder=quoted))
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        return cls(folder)

    def says(self, program: str, text: str) -> None:
        """What a program prints."""
        (self.folder / f"{program}.says").write_text(text)

    def fails(self, program: str, text: str | None) -> None:
        """What a program fails with; None: it works again."""
        path = self.folder / f"{program}.fails"
        if text is None:
            path.unlink()
        else:
            path.write_text(text)

    def runs_jobs(self) -> None:
        """Jobs are started when they are submitted."""
        (self.folder / "run").touch()

    def state(self, job: str, state: str, reason: str = "None") -> None:
        """Put a job into a state; with an empty one SLURM's controller has forgotten it."""
        path = self.folder / f"{job}.state"
        if state:
            path.write_text(f"{state}|{reason}\n")
        else:
            path.unlink()

    @property
    def jobs(self) -> list[str]:
        """Numbers of the jobs that were submitted."""
        return sorted(path.stem for path in self.folder.glob("*.script"))

    def pack(self, job: str) -> Path:
        """The folder of a job's pack."""
        script = (self.folder / f"{job}.script").read_text()
        return Path(shlex.split(script.splitlines()[-1])[-1])

    def calls(self, program: str) -> list[list[str]]:
        """How a program was called."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [shlex.split(line)[1:] for line in lines if re.match(rf"{program}\b", line)]


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition; AssertionError where it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
