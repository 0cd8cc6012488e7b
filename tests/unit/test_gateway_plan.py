# SPDX-License-Identifier: Apache-2.0
"""What a gateway needs before it starts, and what fronts believe of it."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from lipsync_fast.config import Listen, ServeConfig, WebRtc
from lipsync_fast.config_load import load
from lipsync_fast.errors import ConfigError, ServerError
from lipsync_fast.frontend.access.clients import GATEWAY, behind_gateway, is_gateway
from lipsync_fast.supervisor import gateways
from lipsync_fast.supervisor.gateways import plan_gateway
from lipsync_fast.supervisor.ports import keep_port


def wanted(*ports: int) -> ServeConfig:
    return ServeConfig(listen=Listen(grpc_ports=ports))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is there, whether or not it is."""
    monkeypatch.setattr(gateways, "NEEDED", {"grpc": (), "webrtc": ()})


def test_without_a_port_there_is_no_gateway() -> None:
    assert plan_gateway(ServeConfig(), 0.0) is None


@pytest.mark.parametrize("module", ["no_such_module", "no_such.module"])
def test_what_is_not_installed_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr(gateways, "NEEDED", {"grpc": (module,), "webrtc": (module,)})
    with pytest.raises(ServerError) as error:
        plan_gateway(wanted(0), 0.0)
    assert str(error.value).startswith("listen.grpc_ports needs more than is installed: pip ")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("installed")
def test_its_port_is_kept_but_nobody_listens() -> None:
    plan = plan_gateway(wanted(0, 0), 0.0)
    assert plan is not None
    with closing(plan):
        ports = plan.ports["grpc"]
        assert len(set(ports)) == 2
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
            with pytest.raises(ServerError, match=f"127.0.0.1 port {port}: the port is in use"):
                keep_port("127.0.0.1", port)
            with socket.socket() as shares:  # as gRPC does
                shares.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                shares.bind(("127.0.0.1", port))
        spec = plan.spec("gateway-1", Path("/x"), 7, wanted(0, 0))
        assert spec.url == f"ws://127.0.0.1:{plan.inner.port}"
        assert spec.grpc_ports == ports
        assert len(plan.secret) > 40
        assert plan.secret not in repr(plan)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", plan.inner.port), timeout=10).close()


@pytest.mark.usefixtures("installed")
def test_several_protocols_are_one_gateways(tmp_path: Path) -> None:
    config = ServeConfig(listen=Listen(grpc_ports=(0,), webrtc_ports=(0, 0)))
    plan = plan_gateway(config, 0.0)
    assert plan is not None
    with closing(plan):
        assert {kind: len(ports) for kind, ports in plan.ports.items()} == {"grpc": 1, "webrtc": 2}
        assert {port.kind for port in plan.bound} == {"grpc", "webrtc"}
        spec = plan.spec("gateway-1", Path("/x"), 7, config)
        assert (spec.grpc_ports, spec.webrtc_ports) == (plan.ports["grpc"], plan.ports["webrtc"])
    listen = Listen(webrtc_ports=(0,))
    missing = ServeConfig(listen=listen, webrtc=WebRtc(pages=str(tmp_path / "none")))
    with pytest.raises(ServerError, match=r"webrtc\.pages: there is no folder"):
        plan_gateway(missing, 0.0)


def test_what_webrtc_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "NEEDED", {"grpc": (), "webrtc": ("no_such_module",)})
    with pytest.raises(ServerError) as error:
        plan_gateway(ServeConfig(listen=Listen(webrtc_ports=(0,))), 0.0)
    assert str(error.value).startswith("listen.webrtc_ports needs more than is installed: pip ")


@pytest.mark.usefixtures("installed")
def test_each_server_has_a_secret_of_its_own() -> None:
    plans = [plan_gateway(wanted(0), 0.0) for _ in range(2)]
    first, second = (plan for plan in plans if plan is not None)
    with closing(first), closing(second):
        assert first.secret != second.secret


def test_ports_must_differ() -> None:
    with pytest.raises(ConfigError, match="port 8086 is named twice"):
        load(None, {"LIPSYNC_FAST_LISTEN_GRPC_PORTS": "8086"})
    with pytest.raises(ConfigError, match=r"LISTEN_GRPC_PORTS: listen.grpc_ports: port 7 is"):
        load(None, {"LIPSYNC_FAST_LISTEN_GRPC_PORTS": "7,7"})


@pytest.mark.parametrize("shown", [None, "", "another", "a secret "])
def test_who_does_not_show_the_secret_is_refused(shown: str | None) -> None:
    assert not is_gateway("a secret", {GATEWAY: shown}.get)


def test_who_shows_it_is_the_gateway_unless_there_is_none() -> None:
    assert is_gateway("a secret", {GATEWAY: "a secret"}.get)
    assert not is_gateway("", {GATEWAY: ""}.get)


def test_it_asks_for_the_client_that_it_has_seen() -> None:
    listen = msgspec.structs.replace(Listen(), proxies=("10.0.0.9",))
    assert behind_gateway(listen, None) is None
    assert behind_gateway(listen, "10.0.0.1") == "10.0.0.1"
    # What a client writes of itself does not count, what a proxy of ours does.
    assert behind_gateway(listen, "1.2.3.4, 10.0.0.1") == "10.0.0.1"
    assert behind_gateway(listen, "6.6.6.6, 1.2.3.4, 10.0.0.9") == "1.2.3.4"
