"""Ports that nobody else takes between their choice and their use."""

import contextlib
import random
import socket

_CANDIDATES = range(10_000, 23_000)
"""Below those that a system gives to connections and to whoever asks for any port (from 32768 on Linux, from 49152 elsewhere), and those
of Ray's servers for clients (from 23000)."""

_dice = random.SystemRandom()  # two processes that run tests side by side do not choose the same ones


def free_ports(count: int) -> list[int]:
    """Different ports on which nothing listens, at any address of this machine."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            port, one = _dice.choice(_CANDIDATES), stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind(("", port))
                found.append(port)
        return found
