"""Identifies this host's boot, clock and process numbers, which a run's watcher compares with those of its ranks."""

import os
import platform
import socket
from contextlib import suppress
from pathlib import Path


def boot_id() -> str:
    """An identifier of this machine's current boot; empty where the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def clock_id() -> str:
    """An identifier of the clock behind `time.monotonic`, shared by processes of one boot and time namespace."""
    return _namespace("time")


def pid_space() -> str:
    """An identifier of the process numbering: processes of one boot and pid namespace can signal each other by pid."""
    return _namespace("pid")


def _namespace(kind: str) -> str:
    with suppress(OSError):
        return f"{boot_id()} {os.readlink(f'/proc/self/ns/{kind}')}"
    return f"{boot_id()} {platform.node()}"


def keep_alive(connected: socket.socket) -> None:
    """Configure a socket to detect a lost connection within about ten seconds and to send small messages at once."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
