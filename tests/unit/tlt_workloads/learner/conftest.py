"""The gateway's fixtures, for clients of it."""

from tests.unit.tlt_workloads.gateway.conftest import gateway, pods, start_gateway

__all__ = ["gateway", "pods", "start_gateway"]
