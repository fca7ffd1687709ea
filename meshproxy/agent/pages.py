"""What people and tools read of an agent over HTTP. There is no page for what it keeps."""

from __future__ import annotations

from typing import Final

from meshproxy.agent.metrics import AgentMetrics
from meshproxy.agent.secrets import AgentSecrets
from meshproxy.server.admin.exchange import AdminRequest, AdminResponse

_METRICS_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


class Pages:
    """`handle` answers an `AdminServer`."""

    def __init__(self, secrets: AgentSecrets, metrics: AgentMetrics) -> None:
        self._secrets = secrets
        self._metrics = metrics

    async def handle(self, request: AdminRequest) -> AdminResponse:
        """The page that is asked for."""
        secrets = self._secrets
        if request.path == "/healthz/ready":
            return AdminResponse("ready\n") if secrets.ready else AdminResponse("not ready\n", 503)
        if request.path == "/metrics":
            text = self._metrics.text(ready=secrets.ready, left_s=secrets.left_s)
            return AdminResponse(text, content_type=_METRICS_TEXT)
        return AdminResponse("/healthz/ready, /metrics\n", 404)
