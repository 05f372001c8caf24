"""What a run's watcher and ranks on other machines agree on."""

import os
import platform
import socket
from contextlib import suppress
from pathlib import Path


def boot_id() -> str:
    """This boot of this machine; empty where the system does not tell."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def clock_id() -> str:
    """Of the clock that `time.monotonic` reads: processes of one boot and one time namespace share it."""
    return _namespace("time")


def pid_space() -> str:
    """Of the numbers that processes have: those of one boot and one process namespace can signal each other by them."""
    return _namespace("pid")


def _namespace(kind: str) -> str:
    with suppress(OSError):
        return f"{boot_id()} {os.readlink(f'/proc/self/ns/{kind}')}"
    return f"{boot_id()} {platform.node()}"


def keep_alive(connected: socket.socket) -> None:
    """Have a cut line noticed within about ten seconds, and small messages sent at once."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
