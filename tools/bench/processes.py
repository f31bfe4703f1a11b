"""Commands and mounts under measurement: what they take, and that nothing of them stays behind.

Owns: starting, limiting and ending them. Knows no packer. One thread. Whatever interrupts a
measurement, a command's whole process group is killed and a mount is taken down.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

_LAUNCH = pathlib.Path(__file__).with_name("launch.py")
_POLL_S = 0.001
_PATIENCE_S = 10.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A command that failed or took too long, in one line."""


@dataclass(frozen=True)
class Cost:
    """What one piece of work took."""

    wall_s: float
    cpu_s: float  # of all its processes and threads
    peak_mb: float  # of its largest process


def _start(
    arguments: list[str], folder: pathlib.Path, env: Mapping[str, str], out: int, err: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A process in a group of its own."""
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,
    )


def run(command: str, folder: pathlib.Path, env: Mapping[str, str], limit_s: float) -> Cost:
    """Run a shell command in a folder.

    raises: Failed
    """
    arguments = [sys.executable, "-I", "-S", str(_LAUNCH), command]
    with tempfile.TemporaryFile() as complaints:
        process = _start(arguments, folder, env, subprocess.PIPE, complaints)
        try:
            said, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"took more than {limit_s:.0f} s") from None
        finally:
            _end(process)
        wall, cpu, peak, status = said.split() if said else (b"0", b"0", b"0", b"1")
        if int(status):
            raise Failed(f"exit {int(status)}: {_last_line(complaints)}")
    return Cost(float(wall), float(cpu), int(peak) / 1024)


class Mounted:
    """A mount that answers, served by a process of ours."""

    def __init__(self, path: pathlib.Path, pid: int, open_s: float) -> None:
        self.path = path
        self.open_s = open_s  # from starting the command to an answering mount
        self._pid = pid

    def cpu_s(self) -> float:
        """Processor seconds of the process so far."""
        stat = pathlib.Path(f"/proc/{self._pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND

    def rest_mb(self) -> float:
        """Memory of the process now."""
        return self._memory("VmRSS")

    def peak_mb(self) -> float:
        """The most memory that the process has had."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> float:
        for line in pathlib.Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) / 1024
        raise Failed("the mount's process died")


@contextlib.contextmanager
def mounted(
    command: str, folder: pathlib.Path, env: Mapping[str, str], limit_s: float
) -> Iterator[Mounted]:
    """Mount at `folder`/mnt with a command that stays in the foreground, and unmount.

    raises: Failed
    """
    target = folder / "mnt"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryFile() as complaints:
        began = time.perf_counter()
        process = _start(shlex.split(command), folder, env, subprocess.DEVNULL, complaints)
        try:
            while not os.path.ismount(target):
                if process.poll() is not None:
                    raise Failed(f"exit {process.returncode}: {_last_line(complaints)}")
                if time.perf_counter() - began > limit_s:
                    raise Failed(f"no mount after {limit_s:.0f} s")
                time.sleep(_POLL_S)
            os.listdir(target)
            yield Mounted(target, process.pid, time.perf_counter() - began)
        finally:
            if unmount(target):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE_S)
            _end(process)
            unmount(target)  # what came up while it ended


def unmount(target: pathlib.Path) -> bool:
    """Take down what is mounted there, at once or as soon as nobody uses it; False: nothing is."""
    fuse = shutil.which("fusermount3") or shutil.which("fusermount")
    now, later = ([fuse, "-u"], ["-z"]) if fuse else (["umount"], ["-l"])
    found = False
    for command in ([*now, target], [*now, *later, target]):
        if target.resolve() not in _mountpoints():
            break
        found = True
        subprocess.run(command, check=False, capture_output=True)
    return found


def unmount_below(folder: pathlib.Path) -> None:
    """Take down all mounts in a folder, however they came to stay there."""
    for target in _mountpoints():
        if folder.resolve() in target.parents:
            unmount(target)


def _mountpoints() -> list[pathlib.Path]:
    # Asking a mount itself would not do: its process may be dead.
    lines = pathlib.Path("/proc/self/mounts").read_text().splitlines()
    return [pathlib.Path(line.split()[1].replace("\\040", " ")) for line in lines]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def _last_line(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read().decode(errors="replace").split("\n")
    said = (line.strip(" │") for line in reversed(lines) if re.search(r"\w", line))
    return next(said, "said nothing")[:200]
