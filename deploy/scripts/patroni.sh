#!/usr/bin/env bash
# Puts Patroni (PyPI) and etcd (Debian) below DIR, as files: no root, nothing of the system is changed, nothing that is there already.
# The test that takes over a cluster of Patroni's looks in target/drivers, or where MATRIARCH_TEST_DRIVERS says, and is passed over
# where it is missing.
#   usage: patroni.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=${1:-${MATRIARCH_TEST_DRIVERS:-${CARGO_TARGET_DIR:-target}/drivers}}
patroni=4.1.5

say() { printf 'patroni: %s\n' "$*" >&2; }

# A half of it is never at its final place.
venv() {
    local new
    if [ -x "$dir/patroni-$patroni/bin/patroni" ]; then return; fi
    say "fetching Patroni $patroni (PyPI) into $dir/patroni-$patroni"
    new=$(realpath "$(mktemp -d "$dir/new-XXXXXX")")
    if ! python3 -m pip install --quiet --no-warn-conflicts --target "$new/lib" "patroni[etcd3]==$patroni" psycopg-binary psycopg; then
        rm -rf "$new"
        return 1
    fi
    mkdir "$new/bin"
    for program in patroni patronictl; do
        printf '#!/usr/bin/python3\nimport os, sys\nsys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))\n' \
            >"$new/bin/$program"
    done
    # Patroni starts itself anew to start PostgreSQL, and must not run then.
    printf 'from patroni.__main__ import main\nif __name__ == "__main__":\n    main()\n' >>"$new/bin/patroni"
    printf 'from patroni.ctl import ctl\nif __name__ == "__main__":\n    ctl(obj={})\n' >>"$new/bin/patronictl"
    chmod -R a+rX "$new"
    chmod a+x "$new/bin/"*
    mv "$new" "$dir/patroni-$patroni"
}

etcd() {
    local new
    if [ -x "$dir/etcd/usr/bin/etcd" ]; then return; fi
    if ! command -v apt-get >/dev/null 2>&1; then
        say "apt-get is needed to fetch etcd-server"
        return 1
    fi
    say "fetching etcd-server (Debian) into $dir/etcd"
    new=$(realpath "$(mktemp -d "$dir/new-XXXXXX")")
    if ! (cd "$new" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download etcd-server && dpkg-deb -x etcd-server_*.deb .); then
        rm -rf "$new"
        return 1
    fi
    rm -f "$new"/etcd-server_*.deb
    chmod -R a+rX "$new"
    mv "$new" "$dir/etcd"
}

mkdir -p "$dir"
venv
etcd
