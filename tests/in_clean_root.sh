#!/bin/sh
# Run by tests/test_package.py as the first process of a root of its own, from which the checkout cannot be seen: the
# life of a pair as its administrator lives it. The package of the release before is installed and used as the README
# says, upgraded, each of the two hosts is lost and replaced, and the package is removed. Both hosts are this machine
# here; they differ in their directories. Each step says what it found.
set -eu
before=$1
package=$2
step() { echo "== $*"; }
fail() { echo "FAILED: $*"; exit 1; }
host() { # host NAME COMMAND...: at alpha the places are the ordinary ones
    name=$1
    shift
    if [ "$name" = alpha ]; then fusemirror "$@"; else fusemirror --config-dir "/root/$name/etc" --runtime-dir "/root/$name/run" "$@"; fi
}
both_see() { # both_see NAME NAME: each what the other writes
    for writer in "$@"; do
        echo "from $writer" > "/mnt/$writer/by-$writer"
        for reader in "$@"; do
            [ "$(cat "/mnt/$reader/by-$writer")" = "from $writer" ] || fail "$reader does not see what $writer wrote"
        done
    done
}
lose() { # lose NAME: its mount process is killed and its disk is gone
    kill -KILL "$(host "$1" status data --json | sed -n 's/^ *"pid": \([0-9]*\).*/\1/p')"
    tries=0
    until host "$1" umount data >/dev/null 2>&1; [ -z "$(grep " /mnt/$1 " /proc/self/mounts)" ]; do
        umount --lazy "/mnt/$1" 2>/dev/null || true
        [ $((tries = tries + 1)) -lt 100 ] || fail "$1 stays mounted"
        sleep 0.1
    done
    if [ "$1" = alpha ]; then rm -rf /srv/alpha /etc/fusemirror; else rm -rf "/root/$1"; fi
}
replace() { # replace LEFT NEW PORT: as the page "a host is lost for good" says
    rm -f data.join
    host "$1" takeover data
    host "$1" invite data --peer "127.0.0.1:$3" --host-name "$2" --join-file data.join
    mkdir -p "/root/$2" "/mnt/$2"
    host "$2" join data.join "/root/$2/data"
    host "$2" mount data "/mnt/$2"
    host "$1" wait data --for normal --timeout 60
    host "$1" verify data
}

step "install the release before"
dpkg --install "$before"
fusemirror --version
for helper in mount umount; do
    for name in fusemirror fuse.fusemirror; do
        [ -x "/sbin/$helper.$name" ] || fail "no /sbin/$helper.$name"
    done
done
[ "$(command -v fusemirror)" = /usr/bin/fusemirror ] || fail "another fusemirror comes first"

step "two hosts, one of them by fstab"
mkdir -p /srv/alpha /root/beta
cd /root
fusemirror create data /srv/alpha/data --listen 127.0.0.1:17100 --peer 127.0.0.1:17101 --host-name alpha --peer-name beta
host beta join data.join /root/beta/data
mkdir /mnt/alpha /mnt/beta
echo "data /mnt/alpha fusemirror _netdev,nofail 0 0" > /etc/fstab
mount -a
host beta mount data /mnt/beta
fusemirror wait data --for normal
echo hello > /mnt/alpha/hello
both_see alpha beta

step "upgrade: refused while mounted, done when not"
if said=$(dpkg --install "$package" 2>&1); then fail "upgraded below a mount"; fi
echo "$said" | grep '^fusemirror: a filesystem is mounted' || fail "it did not say why: $said"
both_see alpha beta
umount /mnt/beta /mnt/alpha
dpkg --install "$package"
fusemirror --version
dpkg --verify fusemirror | grep -v '^missing */usr/share/\(man\|doc\)' && fail "files differ from the package"
if command -v man >/dev/null && [ -e /usr/share/man/man8/fusemirror.8.gz ]; then
    man -w fusemirror mount.fusemirror fusemirror.toml
fi
bash -c '. /usr/share/bash-completion/completions/fusemirror && complete -p fusemirror'
mount -a
host beta mount data /mnt/beta
fusemirror wait data --for normal
[ "$(cat /mnt/beta/hello)" = hello ] || fail "it lost a file"
both_see alpha beta
fusemirror keys data --renew
if dpkg --remove fusemirror; then fail "removed while mounted"; fi

step "a killed mount process, and mount -a"
kill -KILL "$(fusemirror status data --json | sed -n 's/^ *"pid": \([0-9]*\).*/\1/p')"
until grep -q '^dead:data ' /proc/self/mounts; do [ $((tries = ${tries-0} + 1)) -lt 100 ] || fail "it stays"; sleep 0.1; done
mount -a
[ "$(cat /mnt/alpha/hello)" = hello ] || fail "it is not mended"
fusemirror wait data --for normal --timeout 60

step "the backup is lost for good"
lose beta
replace alpha gamma 17102
both_see alpha gamma

step "the primary is lost for good"
: > /etc/fstab
lose alpha
replace gamma delta 17100
[ "$(cat /mnt/delta/hello)" = hello ] || fail "the new host lacks a file"
both_see gamma delta
host gamma list

step "umount, delete"
umount /mnt/delta /mnt/gamma
for name in gamma delta; do
    fusemirror fsck "/root/$name/data"
    host "$name" delete data --volume
    [ ! -e "/root/$name/data" ] || fail "its volume is there yet"
done

step remove
dpkg --purge fusemirror
found=$(find /usr /sbin/ /etc/systemd -name '*fusemirror*' | head)
[ -z "$found" ] || fail "left behind: $found"
if grep fusemirror /proc/self/mounts; then fail "still mounted"; fi
step done
