"""A Slurm cluster of two nodes on this machine, for tests: real daemons, of one folder, on loopback, of this user."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from shrunk import ENVIRONMENT

SEARCHED = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
MISSING = [
    name for name in ("munged", "slurmctld", "slurmd", "sbatch", "setpriv") if not shutil.which(name, path=SEARCHED)
]
# A node that does not answer is down after SlurmdTimeout, and its jobs start elsewhere after cred_expire: in seconds,
# where it would be minutes. Each node has one processor, so that both have work.
SETTINGS = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdTimeout=5
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerParameters=sched_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES
"""


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds:.0f} s"
        time.sleep(0.2)


class Cluster:
    """Up when it is entered; when it is left every process of it is gone, jobs among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = str(folder / "slurm.conf")
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        (self.folder / "state").mkdir(parents=True)
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        host, ports = socket.gethostname().split(".")[0], free_ports(3)
        settings = SETTINGS.format(folder=self.folder, user=getpass.getuser(), host=host, ports=ports)
        Path(self.configuration).write_text(settings)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # unused; version 2 asks for systemd
        with ExitStack() as stack:
            stack.callback(self.end)
            files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
            places = [f"--{option}={self.folder}/munge.{name}" for option, name in files.items()]
            self.start("munged", "--foreground", "--force", *places)
            wait_for((self.folder / "munge.socket").exists)
            self.start("slurmctld", "-D")
            for node in ("n1", "n2"):
                self.start_node(node)
            wait_for(self.is_up)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self.start("slurmd", "-D", "-N", node, NODE=node)

    def start(self, program: str, *words: str, **variables: str) -> None:
        """A daemon, which ends when this process does."""
        path = shutil.which(program, path=SEARCHED)
        assert path is not None
        words = ("setpriv", "--pdeathsig", "KILL", path, *words)
        env = os.environ | {"SLURM_CONF": self.configuration} | variables
        with (self.folder / f"{program}{variables.get('NODE', '')}.log").open("ab") as log:
            places: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.daemons.append(subprocess.Popen(words, env=env, start_new_session=True, **places))

    def ask(self, *words: str) -> str:
        variables = ENVIRONMENT | {"SLURM_CONF": self.configuration}
        return subprocess.run(words, env=variables, capture_output=True, text=True, check=True).stdout

    def is_up(self) -> bool:
        with suppress(subprocess.CalledProcessError):
            return self.ask("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle", "idle"]
        return False

    def jobs(self) -> list[str]:
        """The numbers of those that wait or run."""
        return self.ask("squeue", "--noheader", "--array", "--format=%i").split()

    def kill_node(self, node: str) -> None:
        """As if its power failed: its daemon and its jobs end at once, and tell nobody."""
        lost = self.processes(f"NODE={node}") + self.processes(f"SLURMD_NODENAME={node}")
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in lost:
                with suppress(ProcessLookupError):
                    os.kill(process, number)

    def processes(self, *variables: str) -> list[int]:
        """Those of this cluster with such variables in their environment.

        A job's slurmstepd has overwritten its own; it is the parent of the job's script.
        """
        wanted, found = {f"SLURM_CONF={self.configuration}", *variables}, set()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted <= set((path / "environ").read_text(errors="replace").split("\0")):
                    parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
                    found |= {int(path.name)}
                    found |= {int(parent)} if Path(f"/proc/{parent}/comm").read_text() == "slurmstepd\n" else set()
        return sorted(found)

    def end(self) -> None:
        while left := self.processes():
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)
        for daemon in self.daemons:
            daemon.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
