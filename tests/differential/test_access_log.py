"""Access log formats and filters: their lines stand in the file that the harness reads."""

from tests.differential.cases import Case, get, post
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import CLOSE, reply

FILE = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"


def access_log(fields: str, condition: str = "") -> str:
    """A listener's access log with fields of FileAccessLog and a filter."""
    condition = f"filter: {{ {condition} }}, " if condition else ""
    return f"access_log: [{{ name: file, {condition}typed_config: {{ '@type': {FILE}, path: '@LOG@'{fields} }} }}]"


def text(value: str, more: str = "") -> str:
    """A text format."""
    return access_log(f', log_format: {{ {more}text_format_source: {{ inline_string: "{value}" }} }}')


def json(value: str, more: str = "") -> str:
    """A JSON format."""
    return access_log(f", log_format: {{ {more}json_format: {{ {value} }} }}")


FORMATS = {
    "default": access_log(""),
    "old_format": access_log(', format: "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%\\n"'),
    "old_json": access_log(", json_format: { code: '%RESPONSE_CODE%', path: '%REQ(:PATH)%' }"),
    "text": text(
        "%RESPONSE_CODE%|%REQ(X-A?X-B):3%|%RESP(x-up)%|%PROTOCOL%|%ROUTE_NAME%|%UPSTREAM_CLUSTER%|%UPSTREAM_HOST%|"
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%|%BYTES_SENT%|%BYTES_RECEIVED%|%REQ(none)%|%RESPONSE_FLAGS_LONG%|%RESPONSE_CODE_DETAILS%\\n"
    ),
    "addresses": text(
        "%DOWNSTREAM_LOCAL_ADDRESS%|%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%|%DOWNSTREAM_LOCAL_PORT%|%UPSTREAM_REMOTE_ADDRESS%|%UPSTREAM_HOST%\\n"
    ),
    "headers_bytes": text(
        "%REQUEST_HEADERS_BYTES%|%RESPONSE_HEADERS_BYTES%\\n"
    ),
    "failure": text(
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%|%CONNECTION_TERMINATION_DETAILS%|%DOWNSTREAM_TRANSPORT_FAILURE_REASON%|%UPSTREAM_REQUEST_ATTEMPT_COUNT%\\n"
    ),
    "tls": text(
        "%DOWNSTREAM_TLS_VERSION%|%DOWNSTREAM_PEER_SUBJECT%|%REQUESTED_SERVER_NAME%|%FILTER_CHAIN_NAME%|%ACCESS_LOG_TYPE%|%VIRTUAL_CLUSTER_NAME%\\n"
    ),
    "metadata": text(
        "%DYNAMIC_METADATA(a:b)%|%CLUSTER_METADATA(a)%|%UPSTREAM_METADATA(a)%|%FILTER_STATE(a)%|%METADATA(ROUTE:a:b)%\\n"
    ),
    "no_newline": text("[%RESPONSE_CODE%]"),
    "percent": text("100%% %RESPONSE_CODE%\\n"),
    "omit_empty": text("a%REQ(x-none)%b%RESPONSE_CODE%\\n", "omit_empty_values: true, "),
    "json": json(
        "code: '%RESPONSE_CODE%', flags: '%RESPONSE_FLAGS%', none: '%REQ(x-none)%', two: '%PROTOCOL% %RESPONSE_CODE%', "
        "nested: { path: '%REQ(:path)%' }, list: ['%BYTES_SENT%', plain], number: 5, text: plain, up: '%RESP(x-up)%'"
    ),
    "json_odd_characters": json("agent: '%REQ(user-agent)%', path: '%REQ(:path)%'"),
    "json_omit_empty": json("code: '%RESPONSE_CODE%', none: '%REQ(x-none)%'", "omit_empty_values: true, "),
}
CONDITIONS = {
    "status": "status_code_filter: { comparison: { op: GE, value: { default_value: 400, runtime_key: none } } }",
    "status_eq": "status_code_filter: { comparison: { op: EQ, value: { default_value: 200, runtime_key: none } } }",
    "duration": "duration_filter: { comparison: { op: GE, value: { default_value: 60000, runtime_key: none } } }",
    "not_health_check": "not_health_check_filter: {}",
    "header": "header_filter: { header: { name: x-log, present_match: true } }",
    "flag": "response_flag_filter: { flags: [UH] }",
    "any_flag": "response_flag_filter: {}",
    "and": "and_filter: { filters: [{ header_filter: { header: { name: x-log, present_match: true } } }, { response_flag_filter: {} }] }",
    "or": "or_filter: { filters: [{ header_filter: { header: { name: x-log, present_match: true } } }, { response_flag_filter: {} }] }",
    "runtime_0": "runtime_filter: { runtime_key: none, percent_sampled: { numerator: 0 } }",
    "runtime_100": "runtime_filter: { runtime_key: none, percent_sampled: { numerator: 100 } }",
}
HEADERS = (("x-a", "abcdef"), ("user-agent", 'agent "quoted" \\ \xe4'))

TOPIC = Topic(
    [
        *(
            case
            for name in FORMATS
            for case in (
                Case(
                    f"{name}_ok",
                    get("/a?b", *HEADERS, host="log.test"),
                    (reply(200, b"hello", [("x-up", "up")]),),
                    listener=name,
                ),
                Case(f"{name}_post", post("/rw/x", b"12345", host="log.test"), (reply(201, b""),), listener=name),
                Case(f"{name}_no_host", get("/empty", host="log.test"), listener=name),
                Case(f"{name}_closed", post("/a", b"x", host="log.test"), (CLOSE,), listener=name),
                *(  # Envoy counts the connection header of its answer, which our codec adds later
                    [Case(f"{name}_bad", b"GET / HTTP/1.1\r\nhost: x\r\na b: c\r\n\r\n", listener=name)]
                    if name != "headers_bytes"
                    else []
                ),
            )
        ),
        *(
            Case(f"filter_{name}_{number}", get(path, *headers, host="log.test"), listener=f"filter_{name}")
            for name in CONDITIONS
            for number, (path, headers) in enumerate(
                (("/a", []), ("/a", [("x-log", "1")]), ("/empty", []), ("/empty", [("x-log", "1")]))
            )
        ),
    ],
    listeners=FORMATS
    | {
        f"filter_{name}": access_log(
            ', log_format: { text_format_source: { inline_string: "%REQ(:path)% %RESPONSE_CODE%\\n" } }', condition
        )
        for name, condition in CONDITIONS.items()
    },
    vhosts="""
- name: log
  domains: [log.test]
  routes:
  - { match: { prefix: /empty }, route: { cluster: empty } }
  - { match: { prefix: /rw }, route: { cluster: a, prefix_rewrite: /new } }
  - { name: the_route, match: { prefix: / }, route: { cluster: a } }
""",
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)
