#!/usr/bin/env bash
# Puts an S3-compatible server for tests (PyPI moto) below DIR, as files: no root, nothing of the system is changed, nothing that
# is there already. The test of backups on an S3 server looks for it in target/s3-server, or where MATRIARCH_TEST_S3_SERVER says,
# and runs it with /usr/bin/python3.
#   usage: s3-server.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=${1:-${MATRIARCH_TEST_S3_SERVER:-${CARGO_TARGET_DIR:-target}/s3-server}}
wanted='moto[server]==5.2.5'

say() { printf 's3-server: %s\n' "$*" >&2; }

if [ "$(cat "$dir/wanted" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
if ! [ -x /usr/bin/python3 ] || ! python3 -m pip --version >/dev/null 2>&1; then
    say "/usr/bin/python3 and pip are needed to fetch an S3 server (apt-get install python3 python3-pip)"
    exit 1
fi
# For that very Python: some of it is compiled.
version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
say "fetching $wanted into $dir"
mkdir -p "$(dirname "$dir")"
new=$(mktemp -d "$dir-XXXXXX")
if ! python3 -m pip install --quiet --no-warn-conflicts --only-binary :all: --python-version "$version" --target "$new" "$wanted"; then
    rm -rf "$new"
    exit 1
fi
echo "$wanted" >"$new/wanted"
chmod -R a+rX "$new"
rm -rf "$dir"
mv "$new" "$dir"
