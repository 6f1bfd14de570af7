"""Nothing of a local cluster listens beyond this machine."""

from __future__ import annotations

import ipaddress

import psutil
import pytest

from tests.clusters import RunningCluster
from tests.integration.cluster_processes import INGRESS, REPLICA, all_of, is_engine, title

pytestmark = pytest.mark.timeout(500)


def open_to(process: psutil.Process) -> list[str]:
    """Addresses on which a process takes what comes: listening TCP sockets, and UDP sockets without a peer."""
    try:
        connections = process.net_connections(kind="inet")
    except psutil.NoSuchProcess:
        return []
    return [
        connection.laddr.ip
        for connection in connections
        if connection.laddr and connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
        if not connection.raddr
    ]


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def test_every_socket_of_every_process_is_on_loopback(running_cluster: RunningCluster) -> None:
    processes = all_of(running_cluster)
    titles = [title(process) for process in processes]
    for wanted, count in ((INGRESS, 1), (REPLICA.format(model="dense"), 1), ("ray::DashboardAgent", 1)):
        assert sum(name.startswith(wanted) for name in titles) == count, wanted
    assert sum(is_engine(process) for process in processes) == 3
    listening = {title(process)[:80]: open_to(process) for process in processes}
    beyond = {name: [ip for ip in addresses if not is_loopback(ip)] for name, addresses in listening.items()}
    assert {name: addresses for name, addresses in beyond.items() if addresses} == {}
    # The look was not in vain: the ingress listens, and so does Ray.
    assert sum(len(addresses) for addresses in listening.values()) > 5


def test_the_ingress_listens_where_it_says(running_cluster: RunningCluster) -> None:
    (ingress,) = (process for process in all_of(running_cluster) if title(process).startswith(INGRESS))
    port = int(running_cluster.url.rpartition(":")[2])
    listening = [c.laddr for c in ingress.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
    assert ("127.0.0.1", port) in listening
