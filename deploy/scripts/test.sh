#!/usr/bin/env bash
# Runs the tests and ends with the runner's closing lines.
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
elif [ -z "${MATRIARCH_TEST_IPC:-}" ] && unshare --ipc true 2>/dev/null; then
    # A PostgreSQL that is killed leaves a segment of shared memory, of which a machine has 4096; these go with the tests.
    MATRIARCH_TEST_IPC=own exec unshare --ipc -- deploy/scripts/test.sh $([ $ignored = no ] || echo --ignored) "$@"
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

# Those that take nothing but a processor, and no other time than their own, fill what clusters and PostgreSQL leave of one
# while they wait: the kernel runs them only when nobody else wants to run.
virtual='binary(/^(sim|model|turmoil|failsafe_sim|failsafe_small|lease_sim|interrupted)$/)'
virtual+=' | binary(matriarch) & test(/^(domain|state|policy|reconcile|agent::core)::/)'
beside=(nice -n 19)
if chrt --idle 0 true 2>/dev/null; then beside=(chrt --idle 0); fi

run_all() {
    cargo nextest run "$@" --no-run
    "${beside[@]}" cargo nextest run "$@" --no-fail-fast --profile beside -E "$virtual" >"$log.beside" 2>&1 &
    local pid=$!
    # Most of them wait for PostgreSQL most of their time; .config/nextest.toml says how many of which kind run at once.
    cargo nextest run "$@" --test-threads "$((2 * $(nproc)))" --no-fail-fast -E "not ($virtual)" 2>&1 | tee "$log" || status=$?
    wait "$pid" || status=$?
    cat "$log.beside"
    closing="$(grep -a 'Summary' "$log" | tail -n 1 || true)
test: $(grep -a 'Summary' "$log.beside" | tail -n 1 || true) (simulations and models, beside the others)"
}

log=$(mktemp)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -f "$log" "$log.beside"' EXIT
status=0
if ! cargo nextest --version >/dev/null 2>&1; then
    only=()
    if [ $ignored = yes ]; then only=(-- --ignored); fi
    cargo test "$@" --no-fail-fast "${only[@]}" 2>&1 | tee "$log" || status=$?
    closing=$(awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
        END { printf "test result: %d passed; %d failed; %d ignored", passed, failed, ignored }' "$log")
elif [ $ignored = yes ]; then
    cargo nextest run "$@" --no-fail-fast --no-tests=pass --profile proof --run-ignored only 2>&1 | tee "$log" || status=$?
    closing=$(grep -a 'Summary' "$log" | tail -n 1 || true)
    other_versions "$@"
else
    run_all "$@"
fi
echo "test: ${closing:-the runner printed no closing line}"
exit "$status"
