"""Which network interface and address of this host lead to the other hosts of a run.

python -m cluster.network.interfaces HOST...    print the address towards the first that is not this host
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence

from cluster.errors import EXIT_DONE, EXIT_FAILED

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
DISCARD = 9  # a port; nothing is sent to it


def interface_towards(hosts: Sequence[str]) -> str | None:
    """Return the interface with the route to the first of the hosts that is not this one; None if none is known."""
    address = address_towards(hosts)
    return None if address is None else interface_of(address)


def address_towards(hosts: Sequence[str]) -> str | None:
    """Return this host's address on the way to the first of the hosts that is not this one; None if none is known.

    A host may resolve its own name to its loopback address: the next of `hosts` then tells.
    """
    addresses = [own_address_towards(host) for host in hosts]
    return next((found for found in addresses if found and not ipaddress.ip_address(found).is_loopback), None)


def own_address_towards(host: str) -> str | None:
    """Return the IPv4 address that this host's packets to another one come from; None without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, DISCARD))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def is_known(host: str) -> bool:
    """Return whether this host finds an address for a name."""
    try:
        return bool(socket.getaddrinfo(host, DISCARD))
    except (OSError, UnicodeError):
        return False


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def main(*hosts: str) -> int:
    address = address_towards(hosts) or next(filter(None, map(own_address_towards, hosts)), None)
    if address is None:
        print(f"{', '.join(hosts)}: no route to any of these hosts", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    print(address)  # noqa: T201
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
