#!/bin/sh
# Run by tests/test_package.py as the first process of a root of its own, from which the checkout cannot be seen:
# the package given is installed, used as the README says, and removed. Each step says what it found.
set -eu
package=$1
step() { echo "== $*"; }
fail() { echo "FAILED: $*"; exit 1; }

step install
dpkg --install "$package"
for helper in mount umount; do
    for name in fusemirror fuse.fusemirror; do
        [ -x "/sbin/$helper.$name" ] || fail "no /sbin/$helper.$name"
    done
done
[ "$(command -v fusemirror)" = /usr/bin/fusemirror ] || fail "another fusemirror comes first"
dpkg --verify fusemirror | grep -v '^missing */usr/share/\(man\|doc\)' && fail "files differ from the package"
fusemirror --version
if command -v man >/dev/null && [ -e /usr/share/man/man8/fusemirror.8.gz ]; then
    man -w fusemirror mount.fusemirror fusemirror.toml
fi
bash -c '. /usr/share/bash-completion/completions/fusemirror && complete -p fusemirror'

step use
mkdir -p /srv/alpha /root/beta
cd /root
fusemirror create data /srv/alpha/data --listen 127.0.0.1:17100 --peer 127.0.0.1:17101 --host-name alpha --peer-name beta
other="fusemirror --config-dir /root/beta/etc --runtime-dir /root/beta/run"
$other join data.join /root/beta/data
mkdir /mnt/alpha /mnt/beta
echo "data /mnt/alpha fusemirror _netdev,nofail 0 0" > /etc/fstab
mount -a
$other mount data /mnt/beta
fusemirror wait data --for normal
echo hello > /mnt/alpha/hello
[ "$(cat /mnt/beta/hello)" = hello ] || fail "the other host does not see it"
if dpkg --remove fusemirror; then fail "removed while mounted"; fi

step "a killed mount process, and mount -a"
pid=$(fusemirror status data --json | sed -n 's/^ *"pid": \([0-9]*\).*/\1/p')
kill -KILL "$pid"
until grep -q '^dead:data ' /proc/self/mounts; do [ $((tries = ${tries-0} + 1)) -lt 100 ] || fail "it stays"; sleep 0.1; done
mount -a
[ "$(cat /mnt/alpha/hello)" = hello ] || fail "it is not mended"

step umount
umount /mnt/beta /mnt/alpha
: > /etc/fstab

step remove
dpkg --purge fusemirror
found=$(find /usr /sbin/ /etc/systemd -name '*fusemirror*' | head)
[ -z "$found" ] || fail "left behind: $found"
[ -d /etc/fusemirror ] || fail "the settings are gone"
step done
