#!/usr/bin/env bash
# Measures how long writes stop for each fault: release build, RUNS runs each,
# one JSON file per fault and profile in target/bench, and what being idle costs. As root every host has a
# network namespace of its own; figures from plain loopback say so in the JSON.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${RUNS:-5}
out=target/bench
mkdir -p "$out"
network=()
faults="kill-host kill-postgres stop-postgres stop-tree crash-loop kill-agent kill-manager switchover"
if [ "$(id -u)" = 0 ]; then
    network=(--netns)
    faults="$faults cut cut-out cut-in wal-full data-full freeze-disk"
fi
for profile in ${PROFILES:-fast normal}; do
    for fault in ${FAULTS:-$faults}; do
        echo "bench: $fault, profile $profile, $runs runs"
        # The runs follow each other faster than crashes should be followed by failovers.
        target/release/matriarch demo --fault "$fault" --profile "$profile" --runs "$runs" "${network[@]}" --set failover_limit=0 \
            --json "$out/$fault-$profile.json"
    done
done
JSON=$out/idle.json deploy/scripts/idle-cost.sh
echo "bench: results are in $out"
