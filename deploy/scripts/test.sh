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

# `make test` runs those that a takeover depends on; these are all of them, on every other version that was fetched.
other_versions() {
    local major bin on_postgresql='(binary(agent) | binary(postgres)) - test(/^postgresql_/)'
    on_postgresql+=' | binary(guard) & test(/^with_postgresql::/) | binary(router) & test(/^(tls|unconfirmed)::/)'
    for major in 16 17 18; do
        bin=${MATRIARCH_TEST_POSTGRESQL:-${CARGO_TARGET_DIR:-target}/postgresql}/$major/server/pginstall/bin
        if [ ! -x "$bin/postgres" ]; then
            echo "test: no PostgreSQL $major in $bin, so no test is run on it"
            continue
        fi
        echo "test: agent, postgres, guard and router on PostgreSQL $major"
        MATRIARCH_TEST_BIN_DIR=$(realpath "$bin") cargo nextest run "$@" --no-fail-fast -E "$on_postgresql" || status=$?
    done
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
if cargo nextest --version >/dev/null 2>&1; then
    only=()
    if [ $ignored = yes ]; then only=(--profile proof --run-ignored only); fi
    cargo nextest run "$@" --no-fail-fast --no-tests=pass "${only[@]}" 2>&1 | tee "$log" || status=$?
    closing=$(grep -a 'Summary' "$log" | tail -n 1 || true)
    if [ $ignored = yes ]; then other_versions "$@"; fi
else
    only=()
    if [ $ignored = yes ]; then only=(-- --ignored); fi
    cargo test "$@" --no-fail-fast "${only[@]}" 2>&1 | tee "$log" || status=$?
    closing=$(awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
        END { printf "test result: %d passed; %d failed; %d ignored", passed, failed, ignored }' "$log")
fi
echo "test: ${closing:-the runner printed no closing line}"
exit "$status"
