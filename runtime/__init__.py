"""runtime: workers that keep data and run plans on it, and the handles by which others use them."""

from runtime.channels.ray import RayCluster
from runtime.connecting import TLS, connect, connect_owner
from runtime.counting import count_messages
from runtime.data import FederatedDataLoader, FederatedDataset, federate
from runtime.federated import FederatedAveraging
from runtime.remote import (
    RemoteModule,
    RemoteOptimizer,
    RemotePlan,
    RemotePointer,
    RemoteTensor,
    VirtualWorker,
    WorkerGroup,
    WorkerHandle,
    me,
    record,
)

__all__ = [
    "TLS",
    "FederatedAveraging",
    "FederatedDataLoader",
    "FederatedDataset",
    "RayCluster",
    "RemoteModule",
    "RemoteOptimizer",
    "RemotePlan",
    "RemotePointer",
    "RemoteTensor",
    "VirtualWorker",
    "WorkerGroup",
    "WorkerHandle",
    "connect",
    "connect_owner",
    "count_messages",
    "federate",
    "me",
    "record",
]
