#!/usr/bin/env bash
# Runs the tests and ends with the runner's closing line.
#   usage: test.sh [--ignored] [flags of cargo]
# Tests that need root (network namespaces, loop devices) say so and pass over.
set -euo pipefail
cd "$(dirname "$0")/../.."
ignored=no
if [ "${1:-}" = --ignored ]; then
    ignored=yes
    shift
fi
if [ "$(id -u)" != 0 ]; then
    echo "test: not root, so tests that need root are passed over"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
if cargo nextest --version >/dev/null 2>&1; then
    only=()
    if [ $ignored = yes ]; then only=(--profile proof --run-ignored only); fi
    cargo nextest run "$@" --no-fail-fast --no-tests=pass "${only[@]}" 2>&1 | tee "$log" || status=$?
    closing=$(grep -a 'Summary' "$log" | tail -n 1 || true)
else
    only=()
    if [ $ignored = yes ]; then only=(-- --ignored); fi
    cargo test "$@" --no-fail-fast "${only[@]}" 2>&1 | tee "$log" || status=$?
    closing=$(awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
        END { printf "test result: %d passed; %d failed; %d ignored", passed, failed, ignored }' "$log")
fi
echo "test: ${closing:-the runner printed no closing line}"
exit "$status"
