"""Serve's servers stay off all interfaces, and a Ray that is not the expected one is refused."""

from __future__ import annotations

import pytest
import ray
from ray.serve._private import replica as serve_replica

from deployments import serve_internals
from deployments.serve_internals import ServeVersionError, bind_replica_server_to_node


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that Serve's own function was asked to open."""
    addresses: list[str] = []

    def original(_server: object, address: str) -> int:
        addresses.append(address)
        return 1234

    monkeypatch.setattr(serve_replica, "add_port_to_grpc_server", original)
    return addresses


@pytest.mark.parametrize(("node", "bound"), [("10.0.0.7", "10.0.0.7:0"), ("fd00::7", "[fd00::7]:0")])
def test_all_interfaces_become_the_nodes_address(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, node: str, bound: str
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    bind_replica_server_to_node()
    assert serve_replica.add_port_to_grpc_server(None, "[::]:0") == 1234
    assert serve_replica.add_port_to_grpc_server(None, "127.0.0.1:5") == 1234
    assert opened == [bound, "127.0.0.1:5"]


def test_another_ray_is_refused(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    with pytest.raises(ServeVersionError, match=r"Ray 2\.61\.0 .*make env"):
        bind_replica_server_to_node()
    serve_replica.add_port_to_grpc_server(None, "[::]:0")
    assert opened == ["[::]:0"]


def test_a_ray_without_the_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(serve_replica, serve_internals._BINDER)
    with pytest.raises(ServeVersionError):
        bind_replica_server_to_node()
