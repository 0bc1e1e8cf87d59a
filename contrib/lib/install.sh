# shellcheck shell=bash
# Sourced by the scripts of contrib/: packages and the private virtual environment .venv.
# Nothing here asks a question or needs standard input. What root runs leaves no file of root's in a clone
# that belongs to somebody else.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
owner=$(stat -c %u "$top")
if [ "$(id -u)" = 0 ] && [ "$owner" != 0 ]; then
    export PYTHONDONTWRITEBYTECODE=1 RUFF_NO_CACHE=true MYPY_CACHE_DIR=/dev/null
    export PYTEST_ADDOPTS="-p no:cacheprovider ${PYTEST_ADDOPTS-}" HYPOTHESIS_STORAGE_DIRECTORY=/dev/null/none
fi

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

# as_owner COMMAND...: run it as the user whom this clone belongs to, where root is at work in another's.
as_owner() {
    if [ "$(id -u)" != 0 ] || [ "$owner" = 0 ]; then
        "$@"
    else
        setpriv --reuid "$owner" --regid "$(stat -c %g "$top")" --clear-groups \
            env HOME="$(getent passwd "$owner" | cut -d: -f6)" "$@"
    fi
}

# commands_of PACKAGE: the commands that stand for Debian's package, one of its own name where nothing is said.
commands_of() {
    case $1 in
        btrfs-progs) echo btrfs mkfs.btrfs ;;
        e2fsprogs) echo mkfs.ext4 e2fsck ;;
        fuse3) echo fusermount3 ;;
        iproute2) echo ip ;;
        libiscsi-bin) echo iscsi-test-cu ;;
        man-db) echo man ;;
        open-isns-server) echo isnsd ;;
        procps) echo pgrep ps ;;
        qemu-system-common) echo qemu-storage-daemon ;;
        qemu-utils) echo qemu-img qemu-io qemu-nbd ;;
        systemd) echo systemd-analyze ;;
        tgt) echo tgtd tgtadm ;;
        util-linux) echo losetup mountpoint prlimit ;;
        xfsprogs) echo mkfs.xfs xfs_repair ;;
        *) echo "$1" ;;
    esac
}

# lacks PACKAGE: say what of it this machine lacks; say nothing where all is there, whoever installed it.
lacks() {
    local command
    case $1 in
        bash-completion) [ -e /usr/share/bash-completion/bash_completion ] || echo bash_completion ;;
        libfuse3-dev) pkg-config --exists fuse3 2>/dev/null || echo "the headers of libfuse 3" ;;
        qemu-block-extra)
            compgen -G '/usr/lib*/qemu*/block-iscsi.so' >/dev/null ||
                compgen -G '/usr/lib/*/qemu*/block-iscsi.so' >/dev/null || echo "libiscsi in qemu"
            ;;
        python3-dev)
            "$python3" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null ||
                echo "the headers of Python"
            ;;
        python3-venv) "$python3" -c 'import ensurepip, venv' 2>/dev/null || echo "Python's venv" ;;
        *)
            for command in $(commands_of "$1"); do
                # An ordinary user's PATH lacks the directories of the daemons and of the file systems' tools.
                PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || echo "$command"
            done
            ;;
    esac
}

# need_packages PACKAGE...: have what stands for these packages of Debian: install them, or say what is missing.
need_packages() {
    local package lack missing=() said=
    for package in "$@"; do
        lack=$(lacks "$package" | paste -sd' ')
        [ -z "$lack" ] && continue
        missing+=("$package")
        said+="${said:+; }$lack ($package)"
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null ||
        die "not found: $said; please install them: in brackets are the names of Debian's packages"
    have_root || die "not found: $said; please have root run: apt-get install ${missing[*]}"
    echo "installing ${missing[*]}"
    quietly as_root apt-get -q update || die "apt-get update failed"
    quietly as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y --no-install-recommends install "${missing[@]}" || die "apt-get install failed"
    hash -r
    for package in "${missing[@]}"; do
        lack=$(lacks "$package" | paste -sd' ')
        [ -z "$lack" ] || die "$package is installed, but there is no $lack; is something else in its place?"
    done
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
    need_packages python3-venv python3-dev
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
        quietly as_owner "$python3" -m venv "$venv" || die "cannot make $venv"
        as_owner tee "$venv/made-with" <<<"$python" >/dev/null
    fi
    (cd "$top" && quietly as_owner "$venv/bin/pip" install --disable-pip-version-check -q -e ".$extra") ||
        die "cannot install iscsifs$extra in $venv"
    as_owner tee "$venv/installed$extra" <<<"$wanted" >/dev/null
}

# open_dev_fuse: let every user mount, as Debian's udev rule does where there is udev.
open_dev_fuse() {
    [ -e /dev/fuse ] || ! have_root || quietly as_root modprobe fuse || true
    [ -e /dev/fuse ] || die "there is no /dev/fuse: the kernel or the container lacks FUSE"
    if [ "$(stat -c %a /dev/fuse)" != 666 ] && have_root; then
        as_root chmod 666 /dev/fuse
    fi
}
