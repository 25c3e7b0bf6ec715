"""The Debian family: a root made by mmdebstrap, from the distribution's own signed packages.

Formats and behaviour relied on: mmdebstrap(1) (hooks, --skip, --aptopt), dpkg(1) (path-exclude),
initramfs.conf(5), deb822 copyright files (Debian policy 12.5, "machine-readable copyright").
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from officegrid.image.family import Command, Package, Plan, Run
from officegrid.image.recipe import Recipe
from officegrid.image.run import BuildError

_MIRROR = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"
_PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
_BASE = (
    "linux-image-amd64", "initramfs-tools", "busybox", "zstd", "kmod", "udev", "systemd-sysv",
    "systemd-resolved", "systemd-boot-efi", "dbus", "libnss-myhostname", "chrony", "nftables",
    "cron", "iproute2", "ca-certificates", "tzdata", "python3",
)  # fmt: skip
_PARTS = {
    "php": (
        "php-cli", "php-mysql", "php-curl", "php-mbstring", "php-xml", "php-sqlite3", "php-zip",
        "php-intl", "php-bcmath",
    ),
    "mariadb": ("mariadb-server", "mariadb-client"),
    "python": (
        "python3-pip", "python3-venv", "python3-pymysql", "python3-requests", "python3-dateutil",
        "python3-yaml",
    ),
}  # fmt: skip
# What a virtual machine on a desktop never has. Files of these folders are not unpacked.
_NO_DRIVERS = (
    "sound", "net/bluetooth", "net/mac80211", "net/wireless", "net/nfc", "net/can", "net/tipc",
    "net/batman-adv", "net/ieee802154", "net/mac802154", "net/6lowpan",
    "fs/btrfs", "fs/ocfs2", "fs/gfs2", "fs/xfs", "fs/f2fs", "fs/jfs", "fs/reiserfs", "fs/nilfs2",
    "fs/ubifs", "fs/jffs2", "fs/afs", "fs/coda", "fs/orangefs", "fs/ceph",
    *(f"drivers/{name}" for name in (
        "accel", "auxdisplay", "bluetooth", "comedi", "gpu", "hwmon", "iio", "infiniband",
        "isdn", "leds", "media", "memstick", "mmc", "mtd", "nfc", "parport", "pcmcia", "platform",
        "power", "soundwire", "spi", "staging", "target", "thunderbolt", "video", "w1", "hid",
        "net/wireless", "net/wwan", "net/can", "net/arcnet", "net/fddi", "net/hamradio",
        "net/ieee802154", "net/usb", "net/ethernet/mellanox", "net/ethernet/qlogic",
        "net/ethernet/broadcom", "net/ethernet/chelsio", "net/ethernet/cavium",
        "net/ethernet/netronome", "net/ethernet/sfc", "net/ethernet/cisco", "net/ethernet/sun",
        "net/ethernet/emulex", "net/ethernet/intel/i40e", "net/ethernet/intel/ice",
        "net/ethernet/qualcomm", "net/ethernet/brocade", "net/ethernet/huawei",
        "scsi/qla2xxx", "scsi/qla4xxx", "scsi/lpfc", "scsi/aic7xxx", "scsi/aic94xx", "scsi/bfa",
        "scsi/bnx2fc", "scsi/bnx2i", "scsi/be2iscsi", "scsi/csiostor", "scsi/cxgbi", "scsi/esas2r",
        "scsi/fnic", "scsi/hpsa.ko", "scsi/isci", "scsi/mpi3mr", "scsi/pm8001", "scsi/qedf",
        "scsi/qedi", "scsi/smartpqi", "scsi/snic", "scsi/mpt3sas", "scsi/megaraid", "scsi/aacraid",
    )),
)  # fmt: skip
# Hyper-V's keyboard and everything for text consoles sit elsewhere; only hid would take these.
_BUT = ("drivers/hid/hid.ko", "drivers/hid/hid-generic.ko", "drivers/hid/hid-hyperv.ko")
# Disks of QEMU, VirtualBox, Hyper-V and VMware; the rest is loaded from the root. A hook only puts
# them in: /etc/initramfs-tools/modules would load every one of them at every boot.
_INITRD_MODULES = (
    "virtio_pci", "virtio_blk", "virtio_scsi", "ahci", "ata_piix", "ata_generic", "sd_mod",
    "hv_vmbus", "hv_storvsc", "vmw_pvscsi", "mptspi", "nvme", "ext4", "crc32c_generic",
)  # fmt: skip

_INITRD_HOOK = f"""\
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules {" ".join(_INITRD_MODULES)}
"""


class Debian:
    """Debian 12 (bookworm) and 13 (trixie), main archive only."""

    name = "debian"

    def tools(self) -> dict[str, str]:
        return {"mmdebstrap": "mmdebstrap", "dpkg-query": "dpkg"}

    def python(self, recipe: Recipe) -> str:
        return _PYTHON[recipe.release]

    def packages(self, recipe: Recipe) -> tuple[str, ...]:
        """All that are asked for by name; apt adds what they need."""
        parts = [name for part in recipe.parts for name in _PARTS[part]]
        return tuple(dict.fromkeys((*_BASE, *parts, *recipe.packages)))

    def plan(self, recipe: Recipe, root: Path, before: Path, downloads: Path) -> Plan:
        sources = _sources(recipe)
        archives = '"$1"/var/cache/apt/archives'
        kept = shlex.quote(str(downloads))
        fetch = (
            f"mkdir -p {archives}/partial && find {kept} -name '*.deb' "
            f'-exec sh -c \'cp -l "$@" || cp "$@"\' sh -t {archives} {{}} +'
        )
        keep = (
            f'for file in {archives}/*.deb; do ln -f "$file" {kept}/ 2>/dev/null '
            f'|| cp "$file" {kept}/; touch "{kept}/${{file##*/}}"; done'
        )
        excluded = [
            "path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
            "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*",
            "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/mysql/mysql-test/*",
        ]  # fmt: skip
        for modules in ("/lib/modules/*/kernel", "/usr/lib/modules/*/kernel"):
            excluded += [f"path-exclude={modules}/{name}/*" for name in _NO_DRIVERS]
            excluded += [f"path-include={modules}/{name}*" for name in _BUT]
        command = (
            "mmdebstrap", "--mode=root", "--variant=apt", "--architectures=amd64",
            f"--include={','.join(self.packages(recipe))}", "--components=main",
            # What was downloaded earlier lies in the archive folder, and what is there is kept.
            "--skip=download/empty,essential/unlink",
            f"--setup-hook={fetch}", f"--customize-hook={keep}",
            f"--essential-hook=cp -R {shlex.quote(str(before))}/. \"$1\"/",
            *(f"--dpkgopt={line}" for line in excluded), "--dpkgopt=force-unsafe-io",
            *_snapshot_options(recipe), recipe.release, str(root), *sources,
        )  # fmt: skip
        return Plan(
            files=_files(),
            commands=(
                Command(
                    command, "Debian's packages could not be installed.",
                    "Is the mirror reachable, and is every --package in Debian? The whole output "
                    "is in the build's log.",
                ),
            ),
            indexes=tuple(_index(line) for line in sources),
        )  # fmt: skip

    def boot_files(self, root: Path) -> tuple[Path, Path]:
        kernels = sorted((root / "boot").glob("vmlinuz-*"), key=_version_key)
        if not kernels:
            raise BuildError("There is no kernel in the image.", "linux-image-amd64 is gone.")
        kernel = kernels[-1]
        initrd = kernel.with_name(kernel.name.replace("vmlinuz-", "initrd.img-"))
        if not initrd.exists():
            raise BuildError(f"{initrd.name} was not made.", "update-initramfs did not run.")
        return kernel, initrd

    def installed(self, root: Path, run: Run) -> list[Package]:
        shape = (
            "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\t"
            "${source:Package} ${source:Version}\n"
        )
        text = run(
            ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", shape],
            "The list of packages could not be read.",
        )
        found = []
        for line in text.splitlines():
            status, name, version, architecture, source = line.split("\t")
            if status.startswith("ii"):
                words = _licences(root / "usr/share/doc" / name / "copyright")
                found.append(Package(name, version, architecture, source, words))
        return sorted(found, key=lambda package: package.name)

    def leavings(self) -> tuple[str, ...]:
        return (
            "var/lib/apt/lists/*", "var/cache/apt/*", "var/cache/debconf/*-old",
            "var/lib/dpkg/*-old", "var/lib/dpkg/lock*", "var/lib/dpkg/triggers/Lock",
            "usr/sbin/policy-rc.d",
        )  # fmt: skip


def _sources(recipe: Recipe) -> tuple[str, ...]:
    mirror = (recipe.mirror or _MIRROR).rstrip("/")
    security = (recipe.security_mirror or _SECURITY).rstrip("/")
    return (
        f"deb {mirror} {recipe.release} main",
        f"deb {mirror} {recipe.release}-updates main",
        f"deb {security} {recipe.release}-security main",
    )


def _index(source: str) -> str:
    _, address, suite, _ = source.split()
    return f"{address}/dists/{suite}/InRelease"


def _snapshot_options(recipe: Recipe) -> tuple[str, ...]:
    """An archive of past days is out of date by design; any other mirror must not be."""
    past = any("snapshot" in mirror for mirror in (recipe.mirror, recipe.security_mirror))
    return ('--aptopt=Acquire::Check-Valid-Until "false"',) if past else ()


def _files() -> dict[str, str]:
    """Settings that packages read while they are installed."""
    return {
        "/etc/apt/apt.conf.d/90gridmachine": (
            'APT::Install-Recommends "false";\nAPT::Install-Suggests "false";\n'
        ),
        "/etc/initramfs-tools/conf.d/gridmachine": (
            "MODULES=list\nCOMPRESS=zstd\nFSTYPE=ext4\nRESUME=none\n"
        ),
        "/etc/initramfs-tools/hooks/gridmachine": _INITRD_HOOK,
        "/etc/kernel-img.conf": "do_symlinks = no\n",
    }


def _version_key(path: Path) -> list[tuple[int, str]]:
    """6.1.0-9 comes before 6.1.0-10."""
    return [
        (int(piece), "") if piece.isdigit() else (-1, piece)
        for piece in re.findall(r"\d+|\D+", path.name)
    ]


def _licences(path: Path) -> tuple[str, ...]:
    """Short names of the licences in a machine-readable copyright file; others give none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    names = re.findall(r"^License: *(\S.{0,79})$", text, re.MULTILINE)
    return tuple(sorted({name.strip() for name in names}))
