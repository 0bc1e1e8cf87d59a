# shellcheck shell=bash
# Sourced by the scripts of contrib/: Debian packages and the private virtual environment .venv.
# Nothing here asks a question or needs standard input.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# What pyfuse3 needs to be built, and what FUSE needs to mount.
build_packages=(gcc pkg-config libfuse3-dev fuse3)

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

have_root() {
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# quietly COMMAND...: run it, and show what it said only where it fails.
quietly() {
    local said
    said=$("$@" 2>&1 </dev/null) && return
    printf '%s\n' "$said" >&2
    return 1
}

# need_packages PACKAGE...: install those that are missing, or say how to.
need_packages() {
    local package missing=()
    for package in "$@"; do
        case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
            installed) ;;
            *) missing+=("$package") ;;
        esac
    done
    [ ${#missing[@]} -eq 0 ] && return
    if ! command -v apt-get >/dev/null || ! have_root; then
        die "please have root install: apt-get install ${missing[*]}"
    fi
    echo "installing ${missing[*]}"
    quietly as_root apt-get -q update || die "apt-get update failed"
    quietly as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y --no-install-recommends install "${missing[@]}" || die "apt-get install failed"
}

# need_python: set $python3 to one of 3.11 or later that can make virtual environments and build extensions.
# $PYTHON names it; else it is the distribution's, which is built with all optimisations, as others often are
# not, or the first on PATH.
need_python() {
    command -v python3 >/dev/null || need_packages python3
    local candidate
    for candidate in ${PYTHON:-/usr/bin/python3 python3}; do
        python3=$candidate
        "$python3" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
        python3=
    done
    [ -n "$python3" ] ||
        die "python3 is $(python3 --version), and 3.11 or later is needed: name one by PYTHON=/path/to/python3"
    if "$python3" -c 'import sys; sys.exit(sys.base_prefix != "/usr")'; then
        need_packages python3-venv python3-dev
    fi
}

# make_venv [EXTRA]: have this clone, with its requirements and those of EXTRA, installed in .venv.
make_venv() {
    local extra=${1:+[$1]} venv=$top/.venv python wanted
    need_python
    need_packages "${build_packages[@]}"
    python=$("$python3" -c 'import sys; print(sys.base_prefix, *sys.version.split())')
    wanted=$(echo "$python" | cat - "$top/setup.cfg" "$top/pyproject.toml" | sha256sum)
    [ "$(cat "$venv/installed$extra" 2>/dev/null)" = "$wanted" ] && return
    echo "installing iscsifs$extra in $venv"
    if [ "$(cat "$venv/made-with" 2>/dev/null)" != "$python" ]; then
        rm -rf "$venv"
        quietly "$python3" -m venv "$venv" || die "cannot make $venv"
        echo "$python" >"$venv/made-with"
    fi
    (cd "$top" && quietly "$venv/bin/pip" install --disable-pip-version-check -q -e ".$extra") ||
        die "cannot install iscsifs$extra in $venv"
    echo "$wanted" >"$venv/installed$extra"
}

# open_dev_fuse: let every user mount, as Debian's udev rule does where there is udev.
open_dev_fuse() {
    [ -e /dev/fuse ] || ! have_root || quietly as_root modprobe fuse || true
    [ -e /dev/fuse ] || die "there is no /dev/fuse: the kernel or the container lacks FUSE"
    if [ "$(stat -c %a /dev/fuse)" != 666 ] && have_root; then
        as_root chmod 666 /dev/fuse
    fi
}
