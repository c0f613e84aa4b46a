#!/bin/sh
# install-packages.sh LIST...: install the Debian packages named in the lists (one a line, # for comments) that are missing.
# Does nothing, and needs no root, when all are there.
set -eu
missing=
for list in "$@"; do
    [ -e "$list" ] || continue
    for package in $(sed 's/#.*//' "$list"); do
        status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) || status=absent
        [ "$status" = installed ] || missing="$missing $package"
    done
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "This is not a Debian system. Install what corresponds to:$missing" >&2
    exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "Not root, and there is no sudo. As root: apt-get install$missing" >&2
        exit 1
    fi
    sudo=sudo
fi
echo "installing Debian packages:$missing"
$sudo apt-get -qq update
# shellcheck disable=SC2086  # a list of words on purpose
$sudo env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
    apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing >/dev/null
