"""Try a checkpoint's program where it can do no harm: in a child process, within so much CPU time and memory.

Nothing inside a process bounds both: `9**(9**9)` or `"a" * 10**11` is a single call into C.
"""

import os
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path


def comes_to_an_end(work: Callable[[], object], cpu_seconds: int, more_bytes: int) -> bool:
    """Whether `work` returns, within this CPU time and with no more memory than this process has and `more_bytes`.

    It runs in a fork, and may use pure Python only: no threads of this process are there, and no GPU.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12: others' locks stay locked; `work` takes none
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        most = more_bytes + resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))  # a child's time starts at none
        signal.alarm(30 * cpu_seconds)  # should a lock that was held at the fork stop it, it does not stop us
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)
