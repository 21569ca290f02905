#!/usr/bin/env bash
# Builds the version before this one into DIR/matriarch: that of the newest tag
# below the present commit, or of the one that is named. Does nothing when it is
# there already. The tests of two versions side by side look for it in
# target/previous, or where MATRIARCH_PREVIOUS says.
#   usage: previous.sh [TAG-OR-COMMIT [DIR]]
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -n "${MATRIARCH_PREVIOUS:-}" ]; then
    echo "previous: $MATRIARCH_PREVIOUS, as MATRIARCH_PREVIOUS says"
    exit 0
fi
wanted=${1:-$(git describe --tags --abbrev=0 HEAD^ 2>/dev/null || true)}
if [ -z "$wanted" ]; then
    echo "previous: no tag below this commit; name a commit: previous.sh COMMIT" >&2
    exit 1
fi
commit=$(git rev-parse --verify "$wanted^{commit}")
dir=${2:-${CARGO_TARGET_DIR:-target}/previous}
mkdir -p "$dir"
dir=$(realpath "$dir")
if [ -x "$dir/matriarch" ] && [ "$(cat "$dir/commit" 2>/dev/null)" = "$commit" ]; then
    echo "previous: $wanted is in $dir"
    exit 0
fi
git worktree prune
rm -rf "$dir/source"
git worktree add --detach --force "$dir/source" "$commit" >/dev/null
trap 'git worktree remove --force "$dir/source"' EXIT
(cd "$dir/source" && CARGO_TARGET_DIR="$dir/build" cargo build --release --locked)
install -m 0755 "$dir/build/release/matriarch" "$dir/matriarch"
echo "$commit" >"$dir/commit"
rm -rf "$dir/build"
echo "previous: $wanted was built into $dir"
