# What ./scripts/demo and ./scripts/test share; sourced, with the repository as the current folder.
# shellcheck shell=bash

say() {
    printf '\n== %s\n' "$*"
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root or sudo for: $*"
    fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

has_candidate() {
    local policy
    policy=$(apt-cache policy "$1" 2>/dev/null) # not piped into grep -q, which would kill it and fail under pipefail
    [[ $policy =~ Candidate:\ [^\(] ]]
}

# Packages that are not installed yet, one a line.
missing_packages() {
    local package
    for package in "$@"; do
        is_installed "$package" || echo "$package"
    done
}

# Install packages; nothing happens when all are there. Lists are fetched only if a package is unknown or not found.
need_packages() {
    local missing package
    command -v apt-get >/dev/null || die "is for Debian and Ubuntu: there is no apt-get here"
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    for package in "${missing[@]}"; do
        if ! has_candidate "$package"; then
            apt_get update
            break
        fi
    done
    apt_get install -y --no-install-recommends "${missing[@]}" >/dev/null && return 0
    apt_get update
    apt_get install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# Like need_packages, for what can be done without (tools that some tests compare with, libraries that are only faster):
# what this release does not have is named and left out.
want_packages() {
    local missing package known=()
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    for package in "${missing[@]}"; do
        if ! has_candidate "$package"; then
            apt_get update
            break
        fi
    done
    for package in "${missing[@]}"; do
        if has_candidate "$package"; then
            known+=("$package")
        else
            echo "not in this release, so done without (its tests are skipped): $package"
        fi
    done
    [ ${#known[@]} -eq 0 ] || need_packages "${known[@]}"
}

# Sets PYTHON to an interpreter of at least 3.11 that can make a venv and build extensions.
find_python() {
    local candidate version
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        PYTHON=$(command -v "$candidate")
        break
    done
    if [ -z "${PYTHON:-}" ]; then
        for version in 3.13 3.12 3.11; do
            if has_candidate "python$version"; then
                need_packages "python$version"
                PYTHON=/usr/bin/python$version
                break
            fi
        done
    fi
    [ -n "${PYTHON:-}" ] || die "needs Python 3.11 or newer"
    case $("$PYTHON" -c 'import sys; print(sys.base_prefix)') in
        /usr)
            version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
            need_packages "python$version-venv" "python$version-dev"
            ;;
    esac
}

# Make .venv with dumpfs in it; $1 is '' or an extra such as '[test]'. A stamp spares the second time, until
# pyproject.toml or the code in C changes.
make_venv() {
    local extras=$1 stamp
    stamp=stamp-$({ cat pyproject.toml dumpfs/native/*.[ch] && echo "$PWD"; } | sha256sum | cut -c1-16)
    if [ -x .venv/bin/dumpfs ] && [ -e ".venv/$stamp$extras" ] && .venv/bin/dumpfs --version >/dev/null 2>&1; then
        return 0
    fi
    need_packages gcc g++ make pkg-config libfuse3-dev liblzo2-dev zlib1g-dev
    want_packages libdeflate0 libsnappy1v5 libzstd1 # for the code in C; without them Python's packages decompress
    find_python
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        say "making .venv with $("$PYTHON" --version)"
        "$PYTHON" -m venv --clear .venv
    fi
    say "installing dumpfs$extras into .venv (pyfuse3, python-lzo and its own C code are compiled; the first time takes a minute)"
    # A path in a .pth file, as setuptools once did it, and not a finder: that costs every start of Python 10 ms.
    .venv/bin/python -m pip --disable-pip-version-check install --config-settings editable_mode=compat \
        --editable ".$extras" >.venv/install.log 2>&1 ||
        { tail -n 40 .venv/install.log >&2; die "pip could not install dumpfs; .venv/install.log has it all"; }
    find .venv -maxdepth 1 -name 'stamp-*' ! -name "$stamp*" -delete
    touch ".venv/$stamp" ".venv/$stamp$extras" # what the tests need includes what the demo needs
}

# Check that this machine can mount at all, before anything long begins.
need_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || die "there is no /dev/fuse here (in a container: run it with --device /dev/fuse --cap-add SYS_ADMIN)"
}

# Let tests abort a connection of FUSE; machines with systemd have this mounted.
want_fuse_control() {
    mountpoint -q /sys/fs/fuse/connections || as_root mount -t fusectl fusectl /sys/fs/fuse/connections 2>/dev/null || true
}
