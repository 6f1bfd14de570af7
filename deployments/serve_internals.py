"""The one place that reaches into Ray Serve's internals.

Serve opens a gRPC server in every replica for calls between deployments and binds it to all interfaces, whatever the
node's address is; its messages are unpickled. Here it is bound to the node's own address instead: loopback on a cluster
of one machine.

Serve's interface for whoever scales deployments from outside is a page of Ray's dashboard, which is off here; what stands
behind the page is called directly.

And Serve takes each deployment that it is handed for a new version of its code, and restarts its replicas. Here a
deployment names its version, so that one which differs in its settings alone keeps them.
"""

from __future__ import annotations

import ray
from ray.serve import Deployment
from ray.serve._private import replica as serve_replica
from ray.serve._private.common import DeploymentID
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

SUPPORTED_VERSION = "2.60.0"

_ALL_INTERFACES = "[::]:"
_BINDER = "add_port_to_grpc_server"
"""The function that Serve's replica module opens the server's port with."""


class ServeVersionError(RuntimeError):
    """The installed Ray is not the one that this module was written against."""


def bind_replica_server_to_node() -> None:
    """Call in a replica's constructor: Serve opens the server after it. Raises `ServeVersionError`."""
    original = getattr(serve_replica, _BINDER, None)
    if ray.__version__ != SUPPORTED_VERSION or original is None:
        raise ServeVersionError(
            f"Ray {ray.__version__} is installed; Pointsman binds the replicas' server of {SUPPORTED_VERSION}. "
            "Install the locked environment (`make env`)."
        )

    def add_port(server: object, address: str) -> int:
        if address.startswith(_ALL_INTERFACES):
            host = ray.util.get_node_ip_address()
            address = f"[{host}]:0" if ":" in host else f"{host}:0"
        return int(original(server, address))

    setattr(serve_replica, _BINDER, add_port)


async def set_replicas(application: str, deployment: str, count: int) -> None:
    """Have a deployment, of an application that was run with `external_scaler_enabled`, go to so many replicas.

    From inside a replica. Raises what the controller raises.
    """
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
    await controller.update_deployment_replicas.remote(DeploymentID(deployment, application), count)


def with_version(deployment: Deployment, version: str) -> Deployment:
    """The deployment with a version of its own. Raises `ServeVersionError`."""
    if ray.__version__ != SUPPORTED_VERSION:
        raise ServeVersionError(
            f"Ray {ray.__version__} is installed; Pointsman names the versions of deployments of {SUPPORTED_VERSION}. "
            "Install the locked environment (`make env`)."
        )
    return deployment.options(version=version, _internal=True)
