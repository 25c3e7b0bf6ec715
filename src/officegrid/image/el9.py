"""The RHEL family, version 9: a root made by dnf --installroot from AlmaLinux 9 and EPEL 9.

This plan was written from the tools' documentation (dnf(8), dnf.conf(5), dracut(8), rpm(8)) and
has never been run: the tests check the commands, not their effect. `docs/golden-image.md` says so.
"""

from __future__ import annotations

from pathlib import Path

from officegrid.image.family import Command, Package, Plan, Run
from officegrid.image.recipe import Recipe
from officegrid.image.run import BuildError

_MIRROR = "https://repo.almalinux.org/almalinux"
_EPEL = "https://dl.fedoraproject.org/pub/epel"
_PHP_STREAM = "php:8.2"
_BASE = (
    "almalinux-release", "epel-release", "kernel-core", "kernel-modules", "dracut", "zstd", "kmod",
    "systemd", "systemd-udev", "systemd-resolved", "systemd-networkd", "systemd-boot-unsigned",
    "dbus-broker", "chrony", "nftables", "cronie", "iproute", "ca-certificates", "tzdata",
    "glibc-minimal-langpack", "shadow-utils", "util-linux", "python3.11",
)  # fmt: skip
_PARTS = {
    "php": (
        "php-cli", "php-mysqlnd", "php-mbstring", "php-xml", "php-pdo", "php-pecl-zip",
        "php-intl", "php-bcmath",
    ),
    "mariadb": ("mariadb-server", "mariadb"),
    "python": ("python3.11-pip", "python3.11-PyMySQL", "python3.11-requests", "python3.11-pyyaml"),
}  # fmt: skip
_DRIVERS = (
    "virtio_pci virtio_blk virtio_scsi ahci ata_piix sd_mod hv_vmbus hv_storvsc vmw_pvscsi nvme"
)
_REPOSITORY = """\
[{name}]
name={name}
baseurl={address}
gpgcheck=1
gpgkey={key}
enabled=1
"""


class El9:
    """AlmaLinux 9; the kernel is Red Hat's, without VirtualBox's Guest Additions."""

    name = "el9"

    def tools(self) -> dict[str, str]:
        return {"dnf": "dnf", "rpm": "rpm"}

    def python(self, recipe: Recipe) -> str:
        return "3.11"

    def packages(self, recipe: Recipe) -> tuple[str, ...]:
        parts = [name for part in recipe.parts for name in _PARTS[part]]
        return tuple(dict.fromkeys((*_BASE, *parts, *recipe.packages)))

    def plan(self, recipe: Recipe, root: Path, before: Path, downloads: Path) -> Plan:
        dnf = (
            "dnf", "-y", f"--installroot={root}", f"--releasever={recipe.release}",
            "--forcearch=x86_64", "--setopt=install_weak_deps=False", "--setopt=tsflags=nodocs",
            f"--setopt=reposdir={before}/etc/yum.repos.d", f"--setopt=cachedir={downloads}",
            "--setopt=keepcache=True",
        )  # fmt: skip
        failed = "AlmaLinux's packages could not be installed."
        fix = "Are the mirror and EPEL reachable, and is every --package in them?"
        commands = [
            Command(("mkdir", "-p", str(root)), failed),
            Command(("cp", "-R", f"{before}/.", str(root)), failed),
        ]
        if "php" in recipe.parts:
            commands.append(Command((*dnf, "module", "enable", _PHP_STREAM), failed, fix))
        commands += [
            Command((*dnf, "install", *self.packages(recipe)), failed, fix),
            # The scriptlet of the kernel runs without /proc, so its initrd is made again here.
            Command(
                ("dracut", "--force", "--regenerate-all"),
                "The initrd could not be made.", in_root=True,
            ),
            # EL 9's python3 is 3.9, too old for the worker: programs named python3 and started
            # through PATH get 3.11, those of the system name /usr/bin/python3.
            Command(
                ("ln", "-sf", "/usr/bin/python3.11", "/usr/local/bin/python3"), failed,
                in_root=True,
            ),
        ]  # fmt: skip
        return Plan(_files(recipe), tuple(commands), _indexes(recipe))

    def boot_files(self, root: Path) -> tuple[Path, Path]:
        kernels = sorted((root / "boot").glob("vmlinuz-*.x86_64"))
        kernels += sorted((root / "usr/lib/modules").glob("*/vmlinuz"))
        initrds = sorted((root / "boot").glob("initramfs-*.x86_64.img"))
        if not kernels or not initrds:
            raise BuildError("There is no kernel, or no initrd, in the image.")
        return kernels[-1], initrds[-1]

    def installed(self, root: Path, run: Run) -> list[Package]:
        shape = "%{NAME}\t%{VERSION}-%{RELEASE}\t%{ARCH}\t%{SOURCERPM}\t%{LICENSE}\n"
        text = run(
            ["rpm", f"--root={root}", "-qa", "--qf", shape],
            "The list of packages could not be read.",
        )
        rows = [line.split("\t") for line in text.splitlines()]
        found = [
            Package(row[0], row[1], row[2], row[3], licences=(row[4],))
            for row in rows
            if len(row) == 5
        ]
        return sorted(found, key=lambda package: package.name)

    def leavings(self) -> tuple[str, ...]:
        return ("var/cache/dnf/*", "var/lib/dnf/*", "var/cache/yum/*", "var/cache/ldconfig/*")


def _addresses(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """Name of a repository -> (its address, that of its key)."""
    mirror = (recipe.mirror or _MIRROR).rstrip("/")
    alma = f"{mirror}/{recipe.release}"
    key = f"{mirror}/RPM-GPG-KEY-AlmaLinux-9"
    return {
        "baseos": (f"{alma}/BaseOS/x86_64/os", key),
        "appstream": (f"{alma}/AppStream/x86_64/os", key),
        "epel": (f"{_EPEL}/9/Everything/x86_64", f"{_EPEL}/RPM-GPG-KEY-EPEL-9"),
    }


def _indexes(recipe: Recipe) -> tuple[str, ...]:
    return tuple(f"{address}/repodata/repomd.xml" for address, _ in _addresses(recipe).values())


def _files(recipe: Recipe) -> dict[str, str]:
    repositories = {
        f"/etc/yum.repos.d/{name}.repo": _REPOSITORY.format(name=name, address=address, key=key)
        for name, (address, key) in _addresses(recipe).items()
    }
    return {
        **repositories,
        "/etc/systemd/system/officegrid-guest.service.d/python.conf": (
            "[Service]\nExecStart=\nExecStart=/usr/bin/python3.11 -S -m officegrid.guest\n"
        ),
        "/etc/dracut.conf.d/gridmachine.conf": (
            f'hostonly="no"\ncompress="zstd"\nadd_drivers+=" {_DRIVERS} "\n'
        ),
    }
