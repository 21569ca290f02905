#!/usr/bin/env bash
# A script that keeps a psql open: for each way one row after the other.
#   usage: with_psql.sh WAY DSN [WAY DSN ...]    the password is in PGPASSWORD
set -o pipefail
# A psql that is gone is noticed by its answers.
trap '' PIPE

tell() { printf '%s\t%s\t%s\n' "$1" "$2" "${3:-psql ended}"; }

# Grows from 20 ms to half a second, and is not the same for everybody.
backoff() {
    local most=$((20 << ($1 < 5 ? $1 : 5)))
    if ((most > 500)); then most=500; fi
    sleep "0.$(printf '%03d' $((most / 2 + RANDOM % (most / 2))))"
}

run() {
    local way=$1 dsn=$2 n=0 failures=0 answer pid to from
    while :; do
        # The array is gone as soon as psql is.
        coproc psql --no-psqlrc --quiet --no-align --tuples-only "$dsn" 2>&1
        pid=${COPROC_PID:-} to=${COPROC[1]:-} from=${COPROC[0]:-}
        while :; do
            # A number is used once: whether a write that failed was committed is not known.
            n=$((n + 1)) answer=
            printf "insert into driver_writes (way, n) values ('%s', %s) returning n;\n" "$way" "$n" >&"$to"
            read -r -u "$from" answer
            if [ "$answer" != "$n" ]; then break; fi
            tell "$way" wrote "$n"
            failures=0
            sleep 0.05
        done 2>/dev/null
        tell "$way" error "$answer"
        { kill "$pid" && wait "$pid"; } 2>/dev/null
        backoff $failures
        failures=$((failures + 1))
    done
}

while [ $# -ge 2 ]; do
    run "$1" "$2" &
    shift 2
done
cat >/dev/null
# They and what they started are of one process group.
kill -TERM 0
