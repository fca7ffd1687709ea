# docker build -t meshproxy .                             the proxy, the pilot and the agent
# docker build -t meshproxy-intercept --target intercept . the interception rules, for an init container
#
# Debian 13 (trixie) has OpenSSL 3.5. The 3.0 of Debian 12 takes eight times as long to read a certificate of a peer's:
# with it a handshake of mutual TLS costs the server half as much again, and one that resumes twice (docs/performance.md).

FROM python:3.11-slim-trixie AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY meshproxy/ meshproxy/
# The hot modules must be compiled: an image with the plain source would serve at half of the speed.
RUN MESHPROXY_REQUIRE_COMPILED=1 pip wheel --no-cache-dir --wheel-dir /wheels '.[grpc,authority]'

FROM debian:trixie-slim AS intercept
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends iptables \
    && rm -rf /var/lib/apt/lists/*
COPY examples/kubernetes/intercept.sh /usr/local/bin/
ENTRYPOINT ["intercept.sh"]

FROM python:3.11-slim-trixie
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-compile --no-index --find-links /wheels 'meshproxy[grpc,authority]' \
    && python -m compileall -q -j 0 /usr/local/lib/python3.11/site-packages/meshproxy \
    && groupadd --gid 1337 meshproxy \
    && useradd --uid 1337 --gid 1337 --no-create-home --shell /usr/sbin/nologin meshproxy
# The interception rules leave alone what this user sends.
USER 1337:1337
ENV PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["meshproxy"]
CMD ["--help"]
