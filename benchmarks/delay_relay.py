"""Carries packets between two network namespaces, each some seconds late: python delay_relay.py SECONDS FIRST SECOND.

It makes the device "wire" in both, a TUN device whose other end is this program, says "ready" and goes on until it is ended.
A message of 100 kB passes on time at 1 Gbit/s. A stream of megabytes does not: its packets come faster than they are moved, the
devices' queues overflow, and TCP slows down.
"""

import collections
import contextlib
import ctypes
import fcntl
import os
import selectors
import struct
import sys
import time

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_PACKET_BYTES = 65_536


def open_device(namespace: str) -> int:
    """The descriptor of a new TUN device "wire" in a namespace; it stays there when this process moves on."""
    with open(f"/run/netns/{namespace}") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN | _IFF_NO_PI))
    return device


def relay(first: int, second: int, latency: float) -> None:
    """Moves packets both ways, for ever."""
    waiting = {first: collections.deque(), second: collections.deque()}  # where to -> (when, packet)
    other = {first: second, second: first}
    selector = selectors.DefaultSelector()
    for device in other:
        selector.register(device, selectors.EVENT_READ)
    while True:
        due = [queue[0][0] for queue in waiting.values() if queue]
        for key, _ in selector.select(max(0.0, min(due) - time.monotonic()) if due else None):
            packet = os.read(key.fd, _PACKET_BYTES)
            waiting[other[key.fd]].append((time.monotonic() + latency, packet))
        now = time.monotonic()
        for device, queue in waiting.items():
            while queue and queue[0][0] <= now:
                packet = queue.popleft()[1]
                # Lost, where the device is not up yet, or its queue is full.
                with contextlib.suppress(OSError):
                    os.write(device, packet)


if __name__ == "__main__":
    devices = [open_device(name) for name in sys.argv[2:]]
    print("ready", flush=True)
    relay(*devices, float(sys.argv[1]))
