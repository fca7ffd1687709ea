"""gRPC servers that the proxy itself asks."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_SERVICE = "envoy.config.core.v3.GrpcService"
_GOOGLE = _SERVICE + ".GoogleGrpc"
_CLOUD = "of Google's cloud; access_token and files of tokens (FileBasedMetadataConfig) are supported"

TABLES: Final[Tables] = {
    _SERVICE: MessageTable("envoy_grpc google_grpc timeout initial_metadata retry_policy"),
    "envoy.config.core.v3.RetryPolicy": MessageTable(
        "retry_on num_retries retry_back_off",
        refused={
            "retry_priority retry_host_predicate host_selection_retry_max_attempts": "another attempt takes any host"
        },
    ),
    "envoy.config.core.v3.BackoffStrategy": MessageTable("base_interval max_interval"),
    _SERVICE + ".EnvoyGrpc": MessageTable(
        # retry_policy is for the streams of control planes, as in Envoy: after which time they are opened again.
        "cluster_name authority max_receive_message_length skip_envoy_headers retry_policy",
    ),
    _GOOGLE: MessageTable(
        "target_uri channel_credentials call_credentials credentials_factory_name channel_args",
        ignored={
            "per_stream_buffer_limit_bytes": "a sender waits for each message to be taken",
            "stat_prefix": "there are no statistics of grpcio's channels",
        },
        refused={
            "channel_credentials_plugin call_credentials_plugin": "only channel_credentials and call_credentials are "
            "supported",
            "config": "is for credential factories that are not supported",
        },
    ),
    _GOOGLE + ".ChannelCredentials": MessageTable(
        "ssl_credentials local_credentials", refused={"google_default": _CLOUD}
    ),
    _GOOGLE + ".SslCredentials": MessageTable("root_certs private_key cert_chain"),
    _GOOGLE + ".GoogleLocalCredentials": MessageTable(),
    _GOOGLE + ".CallCredentials": MessageTable(
        "access_token from_plugin",
        refused={
            "google_compute_engine google_refresh_token service_account_jwt_access google_iam sts_service": _CLOUD
        },
    ),
    _GOOGLE + ".CallCredentials.MetadataCredentialsFromPlugin": MessageTable(
        "typed_config", ignored={"name": "the type of typed_config says which it is"}
    ),
    "envoy.config.grpc_credential.v3.FileBasedMetadataConfig": MessageTable("secret_data header_key header_prefix"),
    _GOOGLE + ".ChannelArgs": MessageTable("args"),
    _GOOGLE + ".ChannelArgs.Value": MessageTable("string_value int_value"),
}
