"""What the server is: `/ready`, `/server_info`, `/listeners`, `/runtime` and their like."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from meshproxy.net.address import Address
from meshproxy.server.admin.backend import LIVE, AdminBackend, ListenerStatus
from meshproxy.server.admin.exchange import AdminRequest, AdminResponse, json_response


async def ready(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """The state in a word; 503 unless it is LIVE."""
    state = backend.state()
    return AdminResponse(f"{state}\n", 200 if state == LIVE else 503)


async def server_info(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """envoy.admin.v3.ServerInfo, with the fields that are not set too."""
    from envoy.admin.v3.server_info_pb2 import ServerInfo

    description = backend.describe()
    info = ServerInfo(version=description.version, hot_restart_version="disabled", node=description.node)
    info.state = ServerInfo.State.Value(backend.state())
    info.uptime_current_epoch.seconds = info.uptime_all_epochs.seconds = int(description.uptime_s)
    json_format.ParseDict(dict(description.command_line_options), info.command_line_options)
    return json_response(
        json_format.MessageToDict(info, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )


async def hot_restart_version(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """There is no hot restart: what Envoy says under --disable-hot-restart."""
    return AdminResponse("disabled")


async def listeners(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """Names and bound addresses."""
    statuses = backend.listeners()
    if request.params.get("format") != "json":
        return AdminResponse(f"{status.name}::{one.text}\n" for status in statuses for one in status.addresses)
    if not statuses:
        return json_response({})
    return json_response({"listener_statuses": [_listener_status(status) for status in statuses]})


def _listener_status(status: ListenerStatus) -> dict[str, Any]:
    addresses = [_address(one) for one in status.addresses]
    value: dict[str, Any] = {"name": status.name}
    if addresses:
        value["local_address"] = addresses[0]
    if addresses[1:]:
        value["additional_local_addresses"] = addresses[1:]
    return value


def _address(address: Address) -> dict[str, Any]:
    """A core.v3.Address."""
    if address.path:
        return {"pipe": {"path": address.path}}
    return {"socket_address": {"address": address.ip, "port_value": address.port}}


async def runtime(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """Layers, and every key with its values."""
    status = backend.runtime()
    entries = {
        name: {"layer_values": list(values), "final_value": final} for name, (values, final) in status.entries.items()
    }
    return json_response({"entries": entries, "layers": list(status.layers)})


async def memory(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """envoy.admin.v3.Memory: only what a Python process knows of itself; 64-bit numbers are strings in JSON."""
    resident = _resident_bytes()
    return json_response(
        {
            "allocated": str(resident),
            "heap_size": str(resident),
            "pageheap_unmapped": "0",
            "pageheap_free": "0",
            "total_thread_cache": "0",
            "total_physical_bytes": str(resident),
        }
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def certs(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """envoy.admin.v3.Certificates."""
    return json_response({"certificates": list(await backend.certificates())})


async def init_dump(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """envoy.admin.v3.UnreadyTargetsDumps: who waits for what. Envoy tells of listeners; we of clusters too, where the
    mask is not `listener`."""
    mask = request.params.get("mask", "")
    if mask not in ("", "listener"):
        return json_response({})
    unready = await backend.unready_targets()
    dumps = [
        {"name": name, "target_names": list(targets)} for name, targets in unready if not mask or "Listener" in name
    ]
    if not dumps:
        return json_response({})
    kind = "type.googleapis.com/envoy.admin.v3.UnreadyTargetsDumps"
    return json_response({"configs": [{"@type": kind, "unready_targets_dumps": dumps}]})
