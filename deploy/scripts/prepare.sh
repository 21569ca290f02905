#!/usr/bin/env bash
# Sees to it that this machine has what `make demo` or `make test` needs: says
# what it will install, then installs it. Changes nothing when nothing is missing.
#   usage: prepare.sh demo|test
set -euo pipefail
cd "$(dirname "$0")/../.."
purpose=${1:?usage: prepare.sh demo|test}

say() { printf 'prepare: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# ---- Rust: never installed behind anybody's back --------------------------------------------------------------

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
rustup_line="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default"

rust() {
    local found
    if ! has cargo || ! has rustc; then
        say "Rust $wanted or newer is needed, and there is none. Install it with:"
        printf '\n    %s\n\n' "$rustup_line" >&2
        exit 2
    fi
    found=$(rustc --version | awk '{print $2}')
    if [ "$(printf '%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)" != "$wanted" ]; then
        say "Rust $wanted or newer is needed, and this is $found. Update it with:"
        if has rustup; then
            printf '\n    rustup update stable && rustup default stable\n\n' >&2
        else
            printf '\n    %s\n\n' "$rustup_line" >&2
        fi
        exit 2
    fi
    if [ "$purpose" = test ] && ! { has cargo-clippy && has rustfmt; }; then
        if has rustup; then
            say "installing clippy and rustfmt with rustup"
            rustup component add clippy rustfmt
        else
            say "cargo clippy and rustfmt are needed for make test; install Rust with:"
            printf '\n    %s\n\n' "$rustup_line" >&2
            exit 2
        fi
    fi
}

# ---- packages -------------------------------------------------------------------------------------------------

oldest_supported=14
newest_supported=18

newest_postgres() {
    local program newest=0 major
    for program in /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres /usr/bin/postgres; do
        [ -x "$program" ] || continue
        major=$("$program" --version | sed -n 's/.*(PostgreSQL) \([0-9]*\).*/\1/p')
        # One that is newer than Matriarch knows is of no use.
        if [ "${major:-0}" -gt "$newest" ] && [ "$major" -le "$newest_supported" ]; then newest=$major; fi
    done
    echo "$newest"
}

can_link() { has cc && echo 'int main(void) { return 0; }' | cc -x c - -o /dev/null 2>/dev/null; }

# Runs a command as root, with sudo where that is needed.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing_packages() {
    if [ "$(newest_postgres)" -lt "$oldest_supported" ]; then echo "$1"; fi
    if ! can_link; then echo "$2"; fi
    # nft and ip live in sbin, which not every user has in the PATH.
    PATH=$PATH:/usr/sbin:/sbin
    if ! has ip; then echo "$3"; fi
    if ! has nft; then echo nftables; fi
    if ! has setpriv || ! has unshare || ! has nsenter; then echo util-linux; fi
}

install_debian() {
    local packages=() services=() drop_in=/etc/postgresql-common/createcluster.d/matriarch-no-cluster.conf
    local policy=/usr/sbin/policy-rc.d made=()
    # Word splitting is meant: several packages may stand for one thing.
    # shellcheck disable=SC2207
    packages=($(missing_packages postgresql "gcc libc6-dev" iproute2))
    # The tests of copies that are made of backups, of what stands before the router, and of drivers, pass without them, and show
    # nothing.
    if [ "$purpose" = test ]; then
        if ! has pgbackrest; then packages+=(pgbackrest); fi
        if ! has javac; then packages+=(default-jdk-headless); fi
        if [ ! -e /usr/share/java/postgresql.jar ]; then packages+=(libpostgresql-jdbc-java); fi
        if ! has node; then packages+=(nodejs); fi
        if ! has npm; then packages+=(npm); fi
        if [ ! -x /usr/bin/python3 ] || ! python3 -m pip --version >/dev/null 2>&1; then packages+=(python3 python3-pip); fi
        if ! has haproxy && [ ! -x /usr/sbin/haproxy ]; then services+=(haproxy); fi
        if ! has pgbouncer && [ ! -x /usr/sbin/pgbouncer ]; then services+=(pgbouncer); fi
        if ! has keepalived && [ ! -x /usr/sbin/keepalived ]; then services+=(keepalived); fi
        if ! has curl; then packages+=(curl); fi
        # Debian 13 and newer; what Debian 12 has doesn't know Patroni's REST.
        if ! has vip-manager && apt-cache show vip-manager2 >/dev/null 2>&1; then services+=(vip-manager2); fi
    fi
    packages+=("${services[@]}")
    if [ ${#packages[@]} = 0 ]; then return; fi
    announce "apt-get install" "${packages[@]}"
    if [[ " ${packages[*]} " == *" postgresql "* ]]; then
        say "no cluster of the distribution will be created or started"
        as_root mkdir -p "${drop_in%/*}"
        echo 'create_main_cluster = false' | as_root tee "$drop_in" >/dev/null
        # Left in place it would also hold for clusters that somebody wants later.
        made+=("$drop_in")
    fi
    if [ ${#services[@]} != 0 ] && [ ! -e "$policy" ]; then
        say "nothing of ${services[*]} will be started as a service"
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 0755 "$policy"
        made+=("$policy")
    fi
    # shellcheck disable=SC2064
    if [ ${#made[@]} != 0 ]; then trap "as_root rm -f ${made[*]}" EXIT; fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
    # Nor after the next boot: PgBouncer's usual port is that of the router.
    if [ ${#services[@]} != 0 ] && has systemctl; then as_root systemctl disable "${services[@]}" || true; fi
}

# Untested: no such system was at hand.
install_redhat() {
    local packages=()
    # shellcheck disable=SC2207
    packages=($(missing_packages postgresql-server "gcc glibc-devel" iproute))
    if [ ${#packages[@]} = 0 ]; then return; fi
    say "this path for RHEL-like systems is untested"
    announce "dnf install" "${packages[@]}"
    as_root dnf install -y "${packages[@]}"
}

announce() {
    say "will run as root: $*"
    if [ "$(id -u)" != 0 ] && ! has sudo; then
        say "this user isn't root and there is no sudo; run that line as root and try again"
        exit 2
    fi
}

packages() {
    local id
    id=$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${ID_LIKE:-}") || id=
    case " $id " in
    *" debian "* | *" ubuntu "*) install_debian ;;
    *" rhel "* | *" fedora "* | *" centos "*) install_redhat ;;
    *)
        local missing
        missing=$(missing_packages "PostgreSQL $oldest_supported to $newest_supported (server)" "a C compiler (cc)" iproute2 | paste -sd, -)
        if [ -n "$missing" ]; then
            say "this system is not known here; install by hand: $missing"
            exit 2
        fi
        ;;
    esac
    if [ "$(newest_postgres)" -lt "$oldest_supported" ]; then
        say "PostgreSQL $oldest_supported to $newest_supported is needed, and this system has none of them: see https://www.postgresql.org/download/"
        exit 2
    fi
}

rust
packages
