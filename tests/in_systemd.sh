#!/bin/sh
# Run by tests/test_package.py, started by a systemd that is the first process of a root of its own: the unit is started,
# comes back when its process is killed, reads its settings again, and is stopped. Each step says what it found.
set -eu
fail() { echo "FAILED: $*"; systemctl status --no-pager fusemirror@data || true; exit 1; }
property() { systemctl show --property "$1" --value fusemirror@data; }

dpkg --install /root/fusemirror.deb
cd /root
mkdir -p /srv/alpha
fusemirror create data /srv/alpha/data --listen 127.0.0.1:17100 --peer 127.0.0.1:17101 --host-name alpha --peer-name beta
mkdir /mnt/alpha
fusemirror set data mountpoint=/mnt/alpha
systemctl daemon-reload
systemctl start fusemirror@data
grep -q '^data /mnt/alpha ' /proc/self/mounts || fail "ready, and not mounted"
echo hello > /mnt/alpha/hello

kill -KILL "$(property MainPID)"
until [ "$(property NRestarts)" = 1 ] && systemctl --quiet is-active fusemirror@data; do
    [ $((tries = ${tries-0} + 1)) -lt 300 ] || fail "it does not come back"
    sleep 0.1
done
[ "$(cat /mnt/alpha/hello)" = hello ] || fail "it came back without its files"

systemctl reload fusemirror@data
systemctl --quiet is-active fusemirror@data || fail "a reload ended it"
systemctl stop fusemirror@data
if grep -q fusemirror /proc/self/mounts; then fail "stopped, and still mounted"; fi
echo "== done"
