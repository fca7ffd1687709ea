#!/bin/sh
# Leads the connections of a pod through its proxy: what comes in goes to the inbound port, what goes out to the outbound
# one. An init container runs this, with NET_ADMIN and NET_RAW; the proxy itself needs neither.
#
#   intercept.sh            put the rules in place; a second time changes nothing
#   intercept.sh --undo     take them away
#   intercept.sh --dry-run  print what would be done
#
# Settings come from the environment:
#   OUTBOUND_PORT       where the proxy takes what goes out          15001
#   INBOUND_PORT        where the proxy takes what comes in          15006
#   PROXY_UID           the user ids of the proxy: its own connections are left alone    1337
#   PROXY_GID           the same of group ids                        1337
#   INBOUND_EXCLUDE     ports that come in as they are               15020 15021 15090
#   OUTBOUND_EXCLUDE    ports that go out as they are
#   OUTBOUND_EXCLUDE_IP networks that are reached without the proxy
#   FAMILIES            iptables, ip6tables, or both                 "iptables", and "ip6tables" where there is IPv6
#
# Lists have spaces or commas between their elements. The chains begin with MESHPROXY_, so other rules stay as they are.
set -eu

outbound=${OUTBOUND_PORT:-15001}
inbound=${INBOUND_PORT:-15006}
uids=${PROXY_UID-1337}
gids=${PROXY_GID-1337}
inbound_exclude=${INBOUND_EXCLUDE-15020,15021,15090}
outbound_exclude=${OUTBOUND_EXCLUDE-}
outbound_exclude_ip=${OUTBOUND_EXCLUDE_IP-}

mode=apply
for argument in "$@"; do
    case $argument in
    --undo) mode=undo ;;
    --dry-run) dry=yes ;;
    *)
        echo "usage: intercept.sh [--undo] [--dry-run]" >&2
        exit 2
        ;;
    esac
done

[ -n "$uids$gids" ] || { echo "intercept.sh: without PROXY_UID and PROXY_GID the proxy would meet itself" >&2; exit 2; }

words() { echo "$1" | tr ',' ' '; }

there() { [ -n "${dry-}" ] || command -v "$1" > /dev/null || { echo "intercept.sh: no $1" >&2; exit 1; }; }

do_it() { if [ -n "${dry-}" ]; then echo "$*"; else "$@"; fi; }

# A rule of the family at work.
rule() { do_it "$tables" -w -t nat "$@"; }

add() {
    [ -n "${dry-}" ] || "$tables" -w -t nat -C "$@" 2> /dev/null || rule -A "$@"
    [ -z "${dry-}" ] || rule -A "$@"
}

# An empty chain of this name.
chain() {
    [ -n "${dry-}" ] || "$tables" -w -t nat -n -L "$1" > /dev/null 2>&1 || rule -N "$1"
    [ -z "${dry-}" ] || rule -N "$1"
    rule -F "$1"
}

apply() {
    chain MESHPROXY_TO_INBOUND
    add MESHPROXY_TO_INBOUND -p tcp -j REDIRECT --to-ports "$inbound"
    chain MESHPROXY_TO_OUTBOUND
    add MESHPROXY_TO_OUTBOUND -p tcp -j REDIRECT --to-ports "$outbound"

    chain MESHPROXY_INBOUND
    for port in $(words "$inbound_exclude"); do
        add MESHPROXY_INBOUND -p tcp --dport "$port" -j RETURN
    done
    add MESHPROXY_INBOUND -p tcp -j MESHPROXY_TO_INBOUND

    chain MESHPROXY_OUTBOUND
    # What the proxy sends to its own application comes from this address: it has been seen.
    add MESHPROXY_OUTBOUND -o lo -s "$inner" -j RETURN
    for owner in $(owners); do
        # An application that calls itself by its service's name: what its proxy sends comes in as from anybody.
        add MESHPROXY_OUTBOUND -o lo ! -d "$loopback" -p tcp -m owner "--${owner%=*}-owner" "${owner#*=}" \
            -j MESHPROXY_TO_INBOUND
    done
    for owner in $(owners); do
        add MESHPROXY_OUTBOUND -m owner "--${owner%=*}-owner" "${owner#*=}" -j RETURN
    done
    add MESHPROXY_OUTBOUND -o lo -j RETURN # what an application says to itself
    add MESHPROXY_OUTBOUND -d "$loopback" -j RETURN
    for port in $(words "$outbound_exclude"); do
        add MESHPROXY_OUTBOUND -p tcp --dport "$port" -j RETURN
    done
    for network in $(words "$outbound_exclude_ip"); do
        case $network in
        *:*) [ "$tables" = iptables ] || add MESHPROXY_OUTBOUND -d "$network" -j RETURN ;;
        *) [ "$tables" = ip6tables ] || add MESHPROXY_OUTBOUND -d "$network" -j RETURN ;;
        esac
    done
    add MESHPROXY_OUTBOUND -p tcp -j MESHPROXY_TO_OUTBOUND

    # Last, so that nothing is led into chains that are half done.
    add PREROUTING -p tcp -j MESHPROXY_INBOUND
    add OUTPUT -p tcp -j MESHPROXY_OUTBOUND
}

owners() {
    for uid in $(words "$uids"); do echo "uid=$uid"; done
    for gid in $(words "$gids"); do echo "gid=$gid"; done
}

undo() {
    for pair in PREROUTING:MESHPROXY_INBOUND OUTPUT:MESHPROXY_OUTBOUND; do
        rule -D "${pair%:*}" -p tcp -j "${pair#*:}" 2> /dev/null || true
    done
    for name in MESHPROXY_INBOUND MESHPROXY_OUTBOUND MESHPROXY_TO_INBOUND MESHPROXY_TO_OUTBOUND; do
        rule -F "$name" 2> /dev/null || true
        rule -X "$name" 2> /dev/null || true
    done
}

families=${FAMILIES-iptables$([ ! -e /proc/net/if_inet6 ] || echo " ip6tables")}
for tables in $(words "$families"); do
    there "$tables"
    case $tables in
    iptables) inner=127.0.0.6/32 loopback=127.0.0.1/32 ;;
    ip6tables) inner=::6/128 loopback=::1/128 ;;
    *)
        echo "intercept.sh: FAMILIES has $tables, and only iptables and ip6tables are known" >&2
        exit 2
        ;;
    esac
    "$mode"
done
