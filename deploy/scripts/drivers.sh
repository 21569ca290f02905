#!/usr/bin/env bash
# Puts drivers of other languages, check_patroni and vip-manager below DIR, as files: no root, nothing of the system is changed,
# nothing that is there already. Versions and hashes are those of tests/cluster/drivers. The tests of real clients look in
# target/drivers, or where MATRIARCH_TEST_DRIVERS says, run what is there with /usr/bin/python3 and node, and pass over what isn't.
#   usage: drivers.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=${1:-${MATRIARCH_TEST_DRIVERS:-${CARGO_TARGET_DIR:-target}/drivers}}
wanted=tests/cluster/drivers

say() { printf 'drivers: %s\n' "$*" >&2; }

# The same files were wanted when this was fetched.
is_there() { cat "${@:2}" | cmp -s - "$dir/$1/wanted"; }

# A half of it is never at its final place.
put() {
    local part=$1 new=$2
    cat "${@:3}" >"$new/wanted"
    chmod -R a+rX "$new"
    rm -rf "${dir:?}/$part"
    mv "$new" "$dir/$part"
}

python() {
    local version new
    if is_there python "$wanted/requirements.txt"; then return; fi
    if ! [ -x /usr/bin/python3 ] || ! python3 -m pip --version >/dev/null 2>&1; then
        say "/usr/bin/python3 and pip are needed to fetch psycopg, asyncpg, grpcio and check_patroni (apt-get install python3 python3-pip)"
        return 1
    fi
    # For that very Python: some of it is compiled.
    version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    say "fetching psycopg, asyncpg, grpcio and check_patroni (PyPI) into $dir/python"
    new=$(mktemp -d "$dir/new-XXXXXX")
    if ! python3 -m pip install --quiet --no-warn-conflicts --only-binary :all: --require-hashes --python-version "$version" \
        --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        --target "$new" --requirement "$wanted/requirements.txt"; then
        rm -rf "$new"
        return 1
    fi
    put python "$new" "$wanted/requirements.txt"
}

node() {
    local new lock=("$wanted/node/package.json" "$wanted/node/package-lock.json")
    if is_there node "${lock[@]}"; then return; fi
    if ! command -v npm >/dev/null 2>&1; then
        say "node and npm are needed to fetch node-postgres (apt-get install nodejs npm)"
        return 1
    fi
    say "fetching node-postgres (npm) into $dir/node"
    new=$(mktemp -d "$dir/new-XXXXXX")
    cp "${lock[@]}" "$new/"
    if ! npm ci --prefix "$new" --ignore-scripts --no-audit --no-fund --loglevel=error >&2; then
        rm -rf "$new"
        return 1
    fi
    put node "$new" "${lock[@]}"
}

# The vip-manager of Debian 12 doesn't know Patroni's REST, that of Debian 13 does and runs on 12: unpacked, not installed. From
# where this machine has its packages, with lists of its own.
vip_manager() {
    local from new apt
    if [ -x "$dir/vip-manager/usr/bin/vip-manager" ] || ! command -v apt-get >/dev/null 2>&1; then return; fi
    from=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Created-By: Packages' 2>/dev/null | sed -n 1p) || from=
    if [ -z "$from" ]; then return; fi
    say "fetching vip-manager2 of Debian 13 into $dir/vip-manager"
    new=$(realpath "$(mktemp -d "$dir/new-XXXXXX")")
    mkdir -p "$new/lists/partial" "$new/archives/partial" "$new/tree"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from trixie main" >"$new/sources"
    apt=(apt-get -qq -o Dir::Etc::SourceList="$new/sources" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$new/lists"
        -o Dir::Cache="$new" -o APT::Sandbox::User="$(id -un)")
    if ! (cd "$new" && "${apt[@]}" update && "${apt[@]}" download vip-manager2 && dpkg-deb -x vip-manager2_*.deb tree); then
        rm -rf "$new"
        return 1
    fi
    chmod -R a+rX "$new/tree"
    mv "$new/tree" "$dir/vip-manager"
    rm -rf "$new"
}

mkdir -p "$dir"
failed=0
python || failed=1
node || failed=1
vip_manager || failed=1
exit $failed
