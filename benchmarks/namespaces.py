"""Two hosts on one machine: network namespaces joined by a link of a given bandwidth and latency. Needs root and iproute2."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence

ADDRESSES, _SUBNET = ("10.201.77.1", "10.201.77.2"), "10.201.77.0/24"
_QUEUE_BYTES = 4_000_000
# The bucket fills while nothing is sent, and what it holds passes unshaped: as small as the timers of the kernel and two frames allow.
_BURST_SECONDS, _BURST_BYTES = 1e-4, 2 * 1514


def missing() -> str | None:
    """Why namespaces cannot be made here, in one line; None where they can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.getuid():
        return "needs root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "needs the commands ip and tc (Debian's package iproute2)"
    name = f"hwa_probe_{os.getpid()}"
    ended = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if ended.returncode:
        return f"ip netns add: {ended.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class Network:
    """Two namespaces and their link; a context manager that removes them.

    Args:
        latency: seconds that a packet is under way on top of what the kernel takes; above 0 the packets pass
            through a relay of our own, since not every kernel has netem.
        congestion_control: of TCP between them; CUBIC is Linux's default, but not every machine's.
        restarts_after_pause: whether TCP begins with its smallest window after a pause, Linux's default.
    """

    def __init__(self, latency: float = 0.0, congestion_control: str = "cubic", restarts_after_pause: bool = False):
        self._latency, self._relay = latency, None
        self._congestion_control, self._restarts_after_pause = congestion_control, restarts_after_pause
        self.names = tuple(f"hwa_{os.getpid()}_{number}" for number in range(2))

    def __enter__(self) -> "Network":
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self):
        for name, address in zip(self.names, ADDRESSES):
            _ip("netns", "add", name)
            # `ip netns exec` puts this over /etc/hosts: Gloo tells the others the address of the host's own name.
            hosts = pathlib.Path("/etc/netns", name, "hosts")
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
        if self._latency:
            self._start_relay()
        else:
            first, second = self.names
            _ip("link", "add", "wire", "netns", first, "type", "veth", "peer", "name", "wire", "netns", second)
        for name, address in zip(self.names, ADDRESSES):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                _ip("-n", name, "link", "set", device, "up")
            # Of the route: a namespace's own default may be one of few only.
            _ip("-n", name, "route", "replace", _SUBNET, "dev", "wire", "congctl", self._congestion_control)
            _ip("netns", "exec", name, "sysctl", "-qw", f"net.ipv4.tcp_slow_start_after_idle={int(self._restarts_after_pause)}")

    def _start_relay(self):
        program = pathlib.Path(__file__).with_name("delay_relay.py")
        self._relay = subprocess.Popen(
            [sys.executable, str(program), str(self._latency), *self.names], stdout=subprocess.PIPE, text=True,
        )
        if self._relay.stdout.readline() != "ready\n":
            raise RuntimeError("the relay did not start")

    def shape(self, bits_per_second: float | None) -> None:
        """Limits both directions; None takes the limit away."""
        for name in self.names:
            subprocess.run(["tc", "-n", name, "qdisc", "del", "dev", "wire", "root"], capture_output=True)
            if bits_per_second is not None:
                burst = max(_BURST_BYTES, int(_BURST_SECONDS * bits_per_second / 8))
                bucket = ["rate", f"{int(bits_per_second)}bit", "burst", str(burst), "limit", str(_QUEUE_BYTES)]
                subprocess.run(["tc", "-n", name, "qdisc", "add", "dev", "wire", "root", "tbf", *bucket], check=True)

    def inside(self, number: int, command: Sequence[str]) -> list[str]:
        """The command that runs `command` on host `number`."""
        return ["ip", "netns", "exec", self.names[number], *command]

    def __exit__(self, *_) -> None:
        if self._relay is not None:
            self._relay.kill()
            self._relay.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(pathlib.Path("/etc/netns", name), ignore_errors=True)


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
