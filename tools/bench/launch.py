"""Run one shell command and say what it took: seconds, processor seconds, peak KiB, exit code.

    python -I -S launch.py COMMAND

A process of its own, and a small one, because the system counts the memory of whoever starts a
command towards the command's peak. Imports nothing that is not needed for that.
"""

import os
import sys
import time

QUIET = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]

began = time.perf_counter()
pid = os.posix_spawn("/bin/sh", ["sh", "-c", sys.argv[1]], os.environ, file_actions=QUIET)
_, status, used = os.wait4(pid, 0)
wall = time.perf_counter() - began
processor = used.ru_utime + used.ru_stime
print(wall, processor, used.ru_maxrss, os.waitstatus_to_exitcode(status))
