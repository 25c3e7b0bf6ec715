#!/bin/sh
# Build a small Linux guest that runs the real worker, for tests, benchmarks and development:
#
#     sh tools/guest/build.sh OUT        makes OUT/root.qcow2, OUT/vmlinuz, OUT/initrd.img
#
# It has Debian 12's Python 3.11, the worker as a wheel with the locked versions of what it needs,
# busybox, and an init of a few lines (./init) instead of systemd: under software emulation that
# is a third of the time to boot. Who it is, is decided by the same `python3 -m officegrid.guest` as
# in the real image. It is no image for an office: no firewall, no log-in, no user but root. Needs root on Debian 12, a package mirror and .venv (`make setup`); no loop device
# and no mount. What changes seldom (Debian's packages, the libraries) is kept in GUEST_CACHE,
# .cache/guest unless set, so that a change of the worker costs seconds.
set -eu
cd "$(dirname "$0")/../.."
out=${1:?usage: sh tools/guest/build.sh OUT}
cache=${GUEST_CACHE:-.cache/guest}
python=${PYTHON:-.venv/bin/python}
PACKAGES=python3-minimal,libpython3-stdlib,dash,coreutils,kmod,busybox-static,iproute2
MODULES="kernel/drivers/virtio kernel/drivers/block/virtio_blk.ko kernel/drivers/net/virtio_net.ko
    kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko
    kernel/drivers/char/virtio_console.ko kernel/drivers/char/hw_random kernel/net/packet
    kernel/fs/isofs kernel/drivers/cdrom kernel/drivers/block/loop.ko
    kernel/net/ipv4/inet_diag.ko kernel/net/ipv4/tcp_diag.ko
    kernel/drivers/ata kernel/drivers/scsi"
BOOT_MODULES="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk"

missing=""
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || missing="$missing $2"
}
need mmdebstrap mmdebstrap
need qemu-img qemu-utils
need mke2fs e2fsprogs
need depmod kmod
need cpio cpio
[ -x /bin/busybox ] || missing="$missing busybox-static"
if [ -n "$missing" ]; then
    echo "build.sh: missing. Run: apt-get install -y --no-install-recommends$missing" >&2
    exit 3
fi
if [ "$(id -u)" != 0 ]; then
    echo "build.sh: must run as root, because the files in the guest belong to root." >&2
    exit 3
fi
if ! "$python" -c 'import hatchling, pip' 2>/dev/null; then
    echo "build.sh: $python cannot build the worker. Run: make setup" >&2
    exit 3
fi

mkdir -p "$out" "$cache"
out=$(cd "$out" && pwd)
work=$(mktemp -d -p "${TMPDIR:-/tmp}" officegrid-guest.XXXXXX)
trap 'rm -rf "$work"' EXIT INT TERM
root=$work/root

step() { echo "build.sh: $*" >&2; }

# Runs a command quietly; what it said is shown when it fails.
quietly() {
    "$@" >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; echo "build.sh: failed: $*" >&2; exit 1; }
}

make_base() { # everything but our own wheel, into $root, and the kernel into $work/boot
    step "Debian packages"
    # Unpacked only: no package script has to run, and Python's bytecode is made below.
    TMPDIR=$work quietly mmdebstrap --mode=root --variant=extract --include="$PACKAGES" \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$root"
    mkdir -p "$root"/dev "$root"/proc "$root"/sys "$root"/run "$root"/tmp "$root"/root \
        "$root"/mnt "$root"/var/lib/officegrid
    chmod 1777 "$root/tmp"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
    printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
    printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
    ln -sf /run/resolv.conf "$root/etc/resolv.conf"
    quietly ldconfig -r "$root"

    step "kernel"
    name=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
    (cd "$work" && quietly apt-get -q -o APT::Sandbox::User=root download "$name")
    dpkg-deb -x "$work"/linux-image*.deb "$work/kernel"
    version=$(basename "$work"/kernel/lib/modules/*)
    from=$work/kernel/lib/modules/$version to=$root/usr/lib/modules/$version
    mkdir -p "$work/boot" "$to"
    cp "$work/kernel/boot/vmlinuz-$version" "$work/boot/vmlinuz"
    # shellcheck disable=SC2086
    (cd "$from" && find modules.builtin* modules.order $MODULES -type f 2>/dev/null |
        cpio -pdm --quiet "$to")
    quietly depmod -b "$root/usr" "$version"

    step "initrd"
    initrd=$work/initrd
    mkdir -p "$initrd/bin" "$initrd/dev" "$initrd/proc" "$initrd/sys" "$initrd/mnt" "$initrd/mod"
    cp /bin/busybox "$initrd/bin/"
    for module in $BOOT_MODULES; do
        find "$from" -name "$module.ko" -exec cp {} "$initrd/mod/" \;
    done
    sed "s/@BOOT_MODULES@/$BOOT_MODULES/" tools/guest/initrd-init >"$initrd/init"
    chmod +x "$initrd/init"
    (cd "$initrd" && find . | cpio -o -H newc --quiet -R 0:0 | gzip -1) >"$work/boot/initrd.img"

    step "libraries"
    "$python" tools/guest/locked.py requirements.lock >"$work/requirements.txt"
    quietly "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
        --require-hashes --no-deps --only-binary=:all: --no-compile --target "$root/opt/officegrid/lib" \
        --implementation cp --python-version 3.11 --platform manylinux2014_x86_64 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
        -r "$work/requirements.txt"
    rm -rf "$root/opt/officegrid/lib/bin" "$root"/usr/share/doc "$root"/usr/share/locale \
        "$root"/usr/share/man "$root"/usr/lib/python3.11/test "$root"/var/lib/dpkg \
        "$root"/var/cache/apt "$root"/var/lib/apt
    # The bytecode must not be checked against the time of its source: images are copied.
    chroot "$root" python3 -m compileall -q --invalidation-mode unchecked-hash \
        /usr/lib/python3.11 /opt/officegrid
}

key=$(cat tools/guest/build.sh tools/guest/initrd-init tools/guest/locked.py requirements.lock \
    pyproject.toml | sha256sum | cut -c1-16)
base=$cache/base-$key.tar
if [ ! -f "$base" ]; then
    make_base
    rm -f "$cache"/base-*.tar
    tar -C "$work" -cf "$base.$$" root boot
    mv "$base.$$" "$base"
else
    step "Debian packages, kernel and libraries from $base"
    tar -C "$work" -xf "$base"
fi

step "worker"
mkdir "$work/wheels" "$work/source"
# Built from a copy: a build writes beside its sources.
cp -r pyproject.toml README.md LICENSE src "$work/source/"
quietly "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --wheel-dir "$work/wheels" "$work/source"
quietly "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --no-deps --no-index --no-compile --ignore-requires-python --upgrade \
    --target "$root/opt/officegrid/lib" "$work"/wheels/officegrid-*.whl
chroot "$root" python3 -m compileall -q --invalidation-mode unchecked-hash \
    /opt/officegrid/lib/officegrid
files=src/officegrid/image/files
mkdir -p "$root/etc/officegrid"
printf '{"init": "small", "user": "root"}\n' >"$root/etc/officegrid/guest.json"
install -m 755 "$files/usr/bin/officegrid" "$root/usr/bin/officegrid"
cp tools/guest/init "$root/sbin/grid-init"
chmod +x "$root/sbin/grid-init"

step "disk"
used_mb=$(du -sm "$root" | cut -f1)
truncate -s "$((used_mb + 1024))M" "$work/root.raw"
mke2fs -q -t ext4 -L root -m 0 -O ^metadata_csum_seed -d "$root" "$work/root.raw"
qemu-img convert -f raw -O qcow2 "$work/root.raw" "$out/.root.qcow2"
cp "$work/boot/vmlinuz" "$work/boot/initrd.img" "$out/"
mv "$out/.root.qcow2" "$out/root.qcow2" # last: whoever finds it finds all
step "$out/root.qcow2: $(du -m "$out/root.qcow2" | cut -f1) MB"
