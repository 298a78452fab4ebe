# shellcheck shell=sh
# Sourced by the other scripts: `fail`, and the installation of packages.

fail() {
    echo "error: $*" >&2
    exit 1
}

# install_packages WHAT APT DNF APK: installs packages as root or with sudo without a password, else fails
# with the command to run. WHAT describes them in messages; the others are their names in Debian, Fedora and
# Alpine.
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
        fail "needed: $1. Install it and try again"
    fi
    [ "$as" != "sudo " ] || fail "needed: $1. Run this and try again:  $update$install"
    echo "installing $1:  $update$install" >&2
    sh -c "$update$install" >&2 || fail "the installation failed; install $1 and try again"
}
