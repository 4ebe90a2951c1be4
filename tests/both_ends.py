"""A plugin for pytest-xdist (`-n 2 -p tests.both_ends`): whole files to two processes, of which one has the stack.

One takes the next file, the other the last one, where `conftest.py` puts those that need the stack. They meet.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class FromBothEnds(LoadFileScheduling):
    def _assign_work_unit(self, node: WorkerController) -> None:
        if node is self.nodes[-1]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FromBothEnds:
    config.option.loadscopereorder = False  # the order is conftest.py's
    return FromBothEnds(config, log)
