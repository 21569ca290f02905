#!/usr/bin/env bash
# What Matriarch itself costs while nothing happens: CPU and memory of manager,
# agent, guard and router on each of three hosts, all on this machine's loopback,
# without any client. PostgreSQL's own cost is not counted.
#   usage: idle-cost.sh            table on stdout
#   SECONDS_MEASURED=60 PROFILE=normal JSON=FILE MATRIARCH=target/release/matriarch BIN_DIR=/usr/lib/postgresql/15/bin
# CPU is utime + stime of all threads (/proc/PID/stat), in percent of one core.
# Memory is PSS (/proc/PID/smaps_rollup). Each host runs a copy of the binary of
# its own: shared by twelve processes its code would look cheaper than on a real
# host, where four share it.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${SECONDS_MEASURED:-60}
profile=${PROFILE:-normal}
matriarch=${MATRIARCH:-target/release/matriarch}
json=${JSON:-}
hosts=(n1 n2 n3)
parts=(manager agent guard router)

die() { echo "idle-cost: $*" >&2; exit 1; }
[ -x "$matriarch" ] || die "$matriarch is not there; build it first: make release"
if [ -z "${BIN_DIR:-}" ]; then
    BIN_DIR=$( (ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null || true) | sort -V | tail -n 1)
fi
[ -x "${BIN_DIR:-/none}/initdb" ] || die "no PostgreSQL server found; name it with BIN_DIR"

# PostgreSQL refuses root.
as_user=()
if [ "$(id -u)" = 0 ]; then as_user=(setpriv --reuid=postgres --regid=postgres --init-groups); fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/matriarch-idle.XXXXXX")
declare -A pid

# Guards and PostgreSQL outlive their agents, so they are found by the directory they work in.
belonging() {
    local entry
    for entry in /proc/[0-9]*; do
        if [[ "$(readlink "$entry/cwd" 2>/dev/null)" == "$dir"* ]] ||
            tr '\0' ' ' 2>/dev/null <"$entry/cmdline" | grep -qF "$dir/"; then
            [ "${entry#/proc/}" = $$ ] || echo "${entry#/proc/}"
        fi
    done
}

clean_up() {
    local rest tries
    for tries in {1..100}; do
        rest=$(belonging)
        if [ -z "$rest" ]; then break; fi
        # shellcheck disable=SC2086
        kill -KILL $rest 2>/dev/null || true
        sleep 0.05
    done
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# ---- three hosts ----------------------------------------------------------------------------------------------

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        if [[ " ${taken:-} " != *" $port "* ]] && ! grep -qi ":$(printf %04X "$port") " /proc/net/tcp /proc/net/udp; then
            taken="${taken:-} $port"
            found=$port
            return
        fi
    done
}

secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

chmod 0755 "$dir"
members=
for host in "${hosts[@]}"; do
    mkdir -p "$dir/$host/run" "$dir/$host/state"
    free_port; manager_port=$found
    free_port; postgres_port=$found
    members+=$(printf '[[cluster.members]]\nid = "%s"\nhost = "127.0.0.1"\nmanager_port = %s\npostgres_port = %s\n_' \
        "$host" "$manager_port" "$postgres_port")
    members=${members%_}
done
umask 077
secret >"$dir/secret"
secret >"$dir/superuser.pass"
secret >"$dir/replication.pass"
umask 022
for host in "${hosts[@]}"; do
    at=$dir/$host
    free_port
    cat >"$at/matriarch.toml" <<TOML
[cluster]
name = "idle"
profile = "$profile"
secret_file = "$dir/secret"
$members
[member]
id = "$host"
[manager]
state_dir = "$at/state/manager"
[agent]
state_dir = "$at/state/agent"
runtime_dir = "$at/run"
[postgresql]
bin_dir = "$BIN_DIR"
data_dir = "$at/pgdata"
superuser_password_file = "$dir/superuser.pass"
replication_password_file = "$dir/replication.pass"
[router]
read_write = "127.0.0.1:$found"
TOML
    cp "$matriarch" "$at/matriarch"
    chmod 0755 "$at/matriarch"
done
if [ "$(id -u)" = 0 ]; then chown -R postgres:postgres "$dir"; fi

for host in "${hosts[@]}"; do
    for part in agent manager router; do
        (cd "$dir/$host" && exec "${as_user[@]}" ./matriarch $part --config "$dir/$host/matriarch.toml") \
            >"$dir/$host/$part.log" 2>&1 &
        pid[$host,$part]=$!
        # No "Killed" for each of them at the end.
        disown
    done
done

status() { "$matriarch" status --config "$dir/n1/matriarch.toml" "$@"; }
echo "idle-cost: starting three hosts, profile $profile, in $dir" >&2
for ((i = 0; ; i++)); do
    if status >/dev/null 2>&1; then break; fi
    [ $i -lt 120 ] || { status >&2 || true; tail -n 5 "$dir"/*/*.log >&2; die "no healthy cluster after 120 s"; }
    sleep 1
done
for host in "${hosts[@]}"; do
    for entry in /proc/[0-9]*; do
        if tr '\0' ' ' 2>/dev/null <"$entry/cmdline" | grep -qF " guard --runtime-dir $dir/$host/run"; then
            pid[$host,guard]=${entry#/proc/}
        fi
    done
    [ -n "${pid[$host,guard]:-}" ] || die "no guard is found on $host"
done
# What starting costs is not what being idle costs.
sleep 10

# ---- measure --------------------------------------------------------------------------------------------------

# Fields 14 and 15 are utime and stime; the name in field 2 may hold spaces, so it is cut off first.
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
pss() { awk '/^Pss:/ { print $2 }' "/proc/$1/smaps_rollup"; }
rss() { awk '/^Rss:/ { print $2 }' "/proc/$1/smaps_rollup"; }

declare -A before
for key in "${!pid[@]}"; do before[$key]=$(ticks "${pid[$key]}"); done
began=$(date +%s%N)
echo "idle-cost: measuring for $seconds s" >&2
sleep "$seconds"
elapsed_ms=$((($(date +%s%N) - began) / 1000000))
status >/dev/null || die "the cluster is not healthy at the end; what was measured is not idleness"

leader=$(status --json | sed -n 's/^  "raft_leader": "\(.*\)",$/\1/p')
primary=$(status --json | sed -n 's/^  "primary": "\(.*\)",$/\1/p')
for host in "${hosts[@]}"; do
    for part in "${parts[@]}"; do
        p=${pid[$host,$part]}
        echo "$host $part $(($(ticks "$p") - before[$host,$part])) $(pss "$p") $(rss "$p")"
    done
done | awk -v ms="$elapsed_ms" -v hz="$(getconf CLK_TCK)" -v json="$json" -v profile="$profile" \
    -v leader="$leader" -v primary="$primary" '
    BEGIN { printf "%-5s %-8s %8s %10s %10s\n", "HOST", "PROCESS", "CPU %", "PSS MiB", "RSS MiB" }
    function row(host, part, cpu, pss, rss) { printf "%-5s %-8s %8.2f %10.1f %10s\n", host, part, cpu, pss, rss }
    function total(host) {
        row(host, "all", cpu[host], pss[host], "")
        hosts = hosts sprintf("%s\n    {\"host\": \"%s\", \"cpu_percent\": %.2f, \"pss_mib\": %.1f, \"processes\": [%s]}",
            (hosts == "" ? "" : ","), host, cpu[host], pss[host], list[host])
        if (cpu[host] > most_cpu) most_cpu = cpu[host]
        if (pss[host] > most_pss) most_pss = pss[host]
    }
    $1 != last && last != "" { total(last) }
    {
        last = $1
        share = $3 / hz / (ms / 1000) * 100
        row($1, $2, share, $4 / 1024, sprintf("%.1f", $5 / 1024))
        cpu[$1] += share; pss[$1] += $4 / 1024
        list[$1] = list[$1] sprintf("%s{\"process\": \"%s\", \"cpu_percent\": %.2f, \"pss_mib\": %.1f, \"rss_mib\": %.1f}",
            (list[$1] == "" ? "" : ", "), $2, share, $4 / 1024, $5 / 1024)
    }
    END {
        total(last)
        printf "\nmost of any host: %.2f %% of one core, %.1f MiB PSS over %.1f s (primary %s, Raft leader %s, profile %s)\n",
            most_cpu, most_pss, ms / 1000, primary, leader, profile
        if (json != "")
            printf "{\n  \"profile\": \"%s\", \"seconds\": %.1f, \"network\": \"loopback\", \"primary\": \"%s\", \"raft_leader\": \"%s\",\n  \"most\": {\"cpu_percent\": %.2f, \"pss_mib\": %.1f},\n  \"hosts\": [%s\n  ]\n}\n",
                profile, ms / 1000, primary, leader, most_cpu, most_pss, hosts > json
    }'
if [ -n "$json" ]; then echo "idle-cost: figures are in $json" >&2; fi
