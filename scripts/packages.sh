# shellcheck shell=sh
# Read by the other scripts: how one of them fails, and how it installs what it needs.

fail() {
    echo "error: $*" >&2
    exit 1
}

# install_packages WHAT APT DNF APK: installs packages if it may, and else says how. WHAT names them to people; the others
# are their names for Debian, Fedora and Alpine.
install_packages() {
    update="" install="" as="sudo "
    if [ "$(id -u)" = 0 ]; then as=""; elif sudo -n true 2>/dev/null; then as="sudo -n "; fi
    if command -v apt-get >/dev/null; then
        update="${as}apt-get update && "
        install="${as}apt-get install -y --no-install-recommends $2"
    elif command -v dnf >/dev/null; then
        install="${as}dnf install -y $3"
    elif command -v apk >/dev/null; then
        install="${as}apk add $4"
    else
        fail "needed: $1. Install and call again"
    fi
    [ "$as" != "sudo " ] || fail "needed: $1. Run this and call again:  $update$install"
    echo "installing $1:  $update$install" >&2
    sh -c "$update$install" >&2 || fail "that did not work; install $1 and call again"
}
