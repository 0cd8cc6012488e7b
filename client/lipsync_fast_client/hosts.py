# SPDX-License-Identifier: Apache-2.0
"""Which hosts are this machine itself."""

from __future__ import annotations

import ipaddress


def is_loopback(name: str) -> bool:
    """Whether a host is this machine's own, which no other machine can reach."""
    if name.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
