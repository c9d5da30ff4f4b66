#!/usr/bin/env bash
# Make .venv in the checkout and install the locked requirements: what `make` runs before anything else.
#
# For a machine that has Python 3.11 or newer and nothing more. No root: what Debian and Ubuntu split off
# from Python (python3-venv, pip) is fetched into a temporary directory where it is missing. One
# environment for the demo and the tests: leaving the developers' tools out would save ten seconds, once.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=requirements-dev.lock
stamp=.venv/set-up-stamp

fail() {
    echo "set_up: $*" >&2
    exit 1
}

# Print the first Python that is new enough. Asked by running it: a name on PATH may be an empty shim.
# The system's goes before others: a distribution builds it with profile-guided optimisation, which pyenv does
# not, and which saves a third of a worker's time. Some distributions leave parts of it away.
find_python() {
    local name
    for name in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys, ssl, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "Python 3.11 or newer is needed and not on PATH; on Debian and Ubuntu: apt-get install python3"
}

# Print a pip wheel that a Python carries: its own, or the one its distribution keeps for venv.
# $1 python
bundled_pip() {
    "$1" - 2>/dev/null <<'PYTHON'
import sysconfig
from pathlib import Path

places = [sysconfig.get_config_var("WHEEL_PKG_DIR"), sysconfig.get_path("stdlib") + "/ensurepip/_bundled"]
wheels = [wheel for place in places if place for wheel in sorted(Path(place).glob("pip-*.whl"))]
print(wheels[-1] if wheels else "")
PYTHON
}

# Print a pip wheel from the distribution's package, unpacked and not installed.
# $1 directory to fetch into
packaged_pip() (
    command -v apt-get >/dev/null || fail "this Python has no pip; install pip and venv for it"
    cd "$1"
    if ! apt-get -q download python3-pip-whl >apt.log 2>&1; then
        # No package lists, or old ones. Lists of our own need no root and leave the system's alone.
        mkdir -p lists/partial archives/partial
        own=(-o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD" -o Acquire::http::Timeout=30)
        apt-get -q "${own[@]}" update >>apt.log 2>&1 || true # one unreachable source does not matter
        apt-get -q "${own[@]}" download python3-pip-whl >>apt.log 2>&1 ||
            { cat apt.log >&2; fail "this Python has no pip; as root: apt-get install python3-venv"; }
    fi
    dpkg -x python3-pip-whl_*.deb .
    echo "$PWD"/usr/share/python-wheels/pip-*.whl
)

# Say what .venv was made from; it is made again when any of this changes, or its Python has gone.
state() {
    .venv/bin/python --version 2>/dev/null || echo "no Python"
    echo "$PWD"
    sha256sum "$lock" scripts/set_up.sh
}

exec 9<"$lock"
flock 9 # a second `make` waits for the first, then finds the work done
if [ -f "$stamp" ] && [ "$(state)" = "$(cat "$stamp")" ]; then
    exit
fi

python=$(find_python)
echo "set_up: making .venv with $("$python" --version); takes some seconds, once" >&2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
rm -rf .venv
"$python" -m venv --without-pip .venv
pip=$(bundled_pip "$python")
[ -n "$pip" ] || pip=$(bundled_pip python3) || true # pip is the same for all
[ -n "$pip" ] || pip=$(packaged_pip "$scratch")
# pip runs from its wheel and stays out of .venv, which then holds the locked requirements and nothing else.
# It fetches uv, which does in seconds what takes pip a minute, but does not know pip's configuration: where the
# packages of this place are, say. So where uv fails pip goes on.
run_pip() {
    .venv/bin/python "$pip/pip" -qq --no-input --disable-pip-version-check install --require-hashes "$@"
}
run_uv() {
    UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=1 "$scratch/uv/bin/uv" pip install --no-config --system-certs \
        --compile-bytecode --python .venv/bin/python --require-hashes "$@"
}
sed -n '/^uv==/,/[^\\]$/p' "$lock" >"$scratch/uv.lock"
{ run_pip --target "$scratch/uv" -r "$scratch/uv.lock" && run_uv -r "$lock"; } 2>"$scratch/uv.log" ||
    run_pip -r "$lock" || fail "the requirements could not be installed, see above"
state >"$stamp"
