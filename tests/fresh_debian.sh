#!/usr/bin/env bash
# Try Plurum on a fresh Debian: `make demo` and the client, in a root that debootstrap makes. Needs root and a network.
#
#   tests/fresh_debian.sh FOLDER [SUITE]
#
# The root gets make, python3 and python3-venv, and this machine's pip settings. Without a Python that runs Triton's
# models, `make demo` must end with one line. Then this machine's Python 3.11 packages are unpacked into the root, and it
# must pass. The client in the root then requests predictions from a server outside, `PLURUM` or that of .venv. FOLDER is
# kept for a look.
set -euo pipefail
# Mounts are this script's alone, and end with it.
[ -n "${ALONE:-}" ] || ALONE=1 exec unshare --mount --propagation private "$0" "$@"
repository=$(cd "$(dirname "$0")/.." && pwd)
root=$(realpath -m "${1:?FOLDER}")
suite=${2:-trixie}
mirror=$(apt-get indextargets --format '$(SITE)' | head -1)
server=

finish() {
  [ -z "$server" ] || kill "$server" || true
}
trap finish EXIT

inside() {
  chroot "$root" env HOME=/root bash -c "cd /root/plurum && $1"
}

[ -e "$root/bin" ] || debootstrap --variant=minbase --include=make,python3,python3-venv,ca-certificates \
  "$suite" "$root" "$mirror"
mkdir -p "$root/opt" "$root/etc/xdg"
for place in proc dev opt; do
  mount --bind "/$place" "$root/$place"
done
mount -t tmpfs none "$root/dev/shm"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
cp /etc/pip.conf "$root/etc/" 2>/dev/null || true
cp -r /etc/xdg/pip "$root/etc/xdg/" 2>/dev/null || true
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
rm -rf "$root/root/plurum" "$root/root/.cache/plurum"
git clone -q "$repository" "$root/root/plurum"

echo "== $(chroot "$root" python3 --version): make demo, where no Python can run Triton's models"
if ! ls "$root"/usr/bin/python3.1[0-2] >/dev/null 2>&1 && inside "make demo"; then
  echo "it passed: uv has downloaded a Python"
fi

echo "== make demo, with this machine's Python 3.11"
packages=$(mktemp -d)
(cd "$packages" && apt-get download -qq python3.11{,-minimal} libpython3.11{,-minimal,-stdlib} 2>/dev/null)
for package in "$packages"/*.deb; do
  dpkg-deb -x "$package" "$root"
done
rm -r "$packages"
inside "make demo"

echo "== the client there, the server here"
inside "python3 -m venv /root/client && /root/client/bin/pip install -q '.[client]'"
cp -r "$root/root/plurum/runs/demo/model_repository" "$root/root/plurum/runs/demo/served"
"${PLURUM:-$repository/.venv/bin/plurum}" serve "$root/root/plurum/runs/demo/served" --http-port 18000 --grpc-port 18001 \
  --metrics-port 18002 &
server=$!
until curl -sf http://127.0.0.1:18000/v2/models/ensemble/ready; do
  kill -0 "$server"
  sleep 1
done
for way in "--http --url 127.0.0.1:18000" "--url 127.0.0.1:18001"; do
  inside "/root/client/bin/plurum predict runs/demo/held_out/seven $way | tail -3"
done
echo "== passed"
