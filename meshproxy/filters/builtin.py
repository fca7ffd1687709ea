"""Every filter that comes with the proxy. Importing this module registers them all."""

from __future__ import annotations

from typing import Final

from meshproxy.filters.http import cors, fault, header_mutation, router
from meshproxy.filters.listener import http_inspector, original_dst, proxy_protocol, tls_inspector
from meshproxy.filters.network import connection_limit, direct_response, echo, http_connection_manager, tcp_proxy

HTTP_FILTER_MODULES: Final = (cors, fault, header_mutation, router)
NETWORK_FILTER_MODULES: Final = (connection_limit, direct_response, echo, http_connection_manager, tcp_proxy)
LISTENER_FILTER_MODULES: Final = (http_inspector, original_dst, proxy_protocol, tls_inspector)
