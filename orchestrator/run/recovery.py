"""A run that survives the loss of a worker: all workers are started again and the run goes on from its last checkpoint.

A killed run goes on in the same way when its command is given again, so the result has the same bits.
"""

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from editing import WorkerLost
from orchestrator.run.coordinator import Coordinator

logger = logging.getLogger("ultraedit")

_MAX_LOSSES = 3
"""Losses in a row without a turn between them, after which the run gives up: a restart does not cure what is wrong."""


def run_to_the_end(make: Callable[[], Coordinator], *, resume: bool = False) -> Path:
    """Run a coordinator, and another one each time that a worker was lost.

    Args:
        make: Makes a coordinator with new workers.
        resume: Whether the first one goes on with a run that is there.

    Raises:
        WorkerLost: Workers were lost again and again. The run can be resumed from its last checkpoint.
        UltraEditError: As :meth:`Coordinator.run`.
    """
    losses, best = 0, -1
    while True:
        with closing(make()) as coordinator:
            try:
                return coordinator.run(resume=resume)
            except WorkerLost as error:
                losses = 1 if coordinator.turn > best else losses + 1
                best = max(best, coordinator.turn)
                if losses >= _MAX_LOSSES:
                    raise
                logger.warning("lost      %s; starting all workers again", error)
                resume = resume or coordinator.has_checkpoint  # else from the beginning: what is there may be an older run
