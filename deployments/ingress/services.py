"""Everything that handlers of one ingress share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.config.cluster import ClusterConfig
from cluster.routing.resolve import Policy
from deployments.access.gate import Gate
from deployments.channel.receiver import ChannelReceiver
from deployments.ingress.admission import AdmissionControl
from deployments.ingress.dispatch import ModelClient
from deployments.ingress.experts import ExpertsControl
from deployments.ingress.health import Health
from deployments.ingress.intent import IntentReader
from deployments.ingress.pools import PoolsControl
from deployments.ingress.precision import PrecisionControl
from deployments.ingress.recent import RecentAnswers
from deployments.ingress.waking import Waking
from deployments.records.recorder import NoRecords, Recorder
from deployments.telemetry.metrics import IngressMetrics
from deployments.telemetry.setup import Telemetry


@dataclass(frozen=True, slots=True)
class Services:
    """One ingress's collaborators."""

    config: ClusterConfig
    policy: Policy
    clients: Mapping[str, ModelClient]
    channel: ChannelReceiver
    health: Health
    intents: IntentReader
    recent: RecentAnswers
    gate: Gate
    admission: AdmissionControl
    precision: PrecisionControl
    experts: ExpertsControl
    pools: PoolsControl
    metrics: IngressMetrics
    telemetry: Telemetry
    trusted: bool
    """Whether callers without a key may continue their own traces: on loopback, where no keys are asked for."""
    waking: Waking = field(default_factory=Waking)
    records: Recorder = field(default_factory=NoRecords)
