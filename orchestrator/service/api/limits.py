"""Rate limits: a bucket for each caller, which fills with time."""

import threading
import time
from collections import OrderedDict

_MAX_CALLERS = 10_000


class RateLimit:
    """Buckets by caller.

    Args:
        rate: Requests that come in a second.
        burst: Requests that a bucket holds.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: str) -> float:
        """Take one request out of a bucket. Returns the seconds to wait if there is none, else 0."""
        with self._lock:
            now = time.monotonic()
            held, since = self._buckets.pop(caller, (self._burst, now))
            held = min(self._burst, held + (now - since) * self._rate)
            allowed = held >= 1
            self._buckets[caller] = (held - 1 if allowed else held, now)
            if len(self._buckets) > _MAX_CALLERS:
                self._buckets.popitem(last=False)
            return 0.0 if allowed else (1 - held) / self._rate
