"""What can go wrong, each with the status that a client of an OpenAI-shaped API expects."""

from __future__ import annotations

from typing import Any


class GatewayError(Exception):
    """An answer other than 200.  `parameter` names the field of the request that is at fault, if one is."""

    status = 500
    kind = "GatewayError"

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter

    def body(self) -> dict[str, Any]:
        """The error as vLLM and OpenAI shape it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.status}}


class InvalidRequestError(GatewayError):
    """The request cannot be served whatever the pods do."""

    status = 400
    kind = "BadRequestError"


class NoPodError(GatewayError):
    """No rollout pod is ready."""

    status = 503
    kind = "ServiceUnavailableError"


class PodFailedError(GatewayError):
    """Pods were reached, or died under the request, and none gave an answer."""

    status = 502
    kind = "BadGatewayError"


class PodsDisagreeError(GatewayError):
    """The pods gave answers that cannot be made into one."""

    status = 409
    kind = "ConflictError"


class PodRefusedError(GatewayError):
    """A pod answered a control call with an error; the status is the pod's own."""

    kind = "RolloutPodError"

    def __init__(self, address: str, path: str, *, status: int, message: str) -> None:
        super().__init__(f"rollout pod {address} refused {path} with {status}: {message}")
        self.status = status


class PodUnreachableError(Exception):
    """No connection, or the connection broke before the answer was complete.  Internal: it leads to a retry."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"rollout pod {address}: {reason}")
        self.address = address
        self.reason = reason
