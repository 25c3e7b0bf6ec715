"""Builds an image from a recipe: packages, the worker, the disk, the files for hypervisors.

All work happens in a draft folder beside the target, which appears whole at the end or not at all.
The log of a failed build is kept beside the target as `NAME.failed.log`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import officegrid
from officegrid.core.errors import OfficeGridError, UnavailableError, UsageError
from officegrid.image import base, disk, formats, ova, rootfiles, sbom, seal, tools, worker_files
from officegrid.image.debian import Debian
from officegrid.image.el9 import El9
from officegrid.image.family import Family, Package
from officegrid.image.recipe import Recipe, check, check_name
from officegrid.image.run import BuildError, Runner
from officegrid.image.worker_files import Wheel

FAMILIES: dict[str, Family] = {"debian": Debian(), "el9": El9()}
DESCRIPTION = "image.json"


@dataclass(frozen=True, slots=True)
class Where:
    """`output`: the image's folder. `work`: gets some GB for a while; `cache`: kept."""

    output: Path
    work: Path
    cache: Path


@dataclass(frozen=True, slots=True)
class _Contents:
    """What the second half of a build learns about the root."""

    packages: list[Package]
    wheels: list[Wheel]
    indexes: dict[str, str]
    kernel: str


def build(
    recipe: Recipe, where: Where, say: Callable[[str], None], *, name: str = "", epoch_s: int = 0
) -> dict[str, Any]:
    """Build; gives what `image.json` says. `name`: default "gridmachine-" and the date of the
    package indexes. `epoch_s`: SOURCE_DATE_EPOCH; 0 takes that same date. `say` gets progress.

    Raises UsageError for a recipe that cannot be, ForbiddenError unless root, UnavailableError
    for missing programs, room or mirrors, and BuildError.
    """
    check(recipe)
    if name:
        check_name(name)
    family = FAMILIES[recipe.family]
    tools.check_root()
    tools.check_tools({**tools.SHARED, **family.tools()})
    worker_files.check_pip()
    _check_output(where.output)
    base.check_cache(where.cache)
    tools.check_space(where.work, where.output)
    where.output.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{where.output.name}.draft-"
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=where.output.parent))
    work = Path(tempfile.mkdtemp(prefix="officegrid-image-", dir=where.work))
    failed_log = where.output.parent / f"{where.output.name}.failed.log"
    try:
        # The unprivileged user that downloads packages must get through.
        work.chmod(0o755)
        run = Runner(draft / "build.log", say, work)
        try:
            run.epoch_s = epoch_s
            description = _build(run, family, recipe, where.cache, draft, work, name)
        except OfficeGridError:
            shutil.copyfile(run.log, failed_log)
            say(f"The whole log: {failed_log}")
            raise
        finally:
            run.close()
        _publish(draft, where.output)
        failed_log.unlink(missing_ok=True)
        return description
    except OSError as error:
        raise UnavailableError(
            "The image could not be written.",
            f"{error.filename or where.output}: {error.strerror or error}.",
            "Free some disk space, or check the rights of the folders.",
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(draft, ignore_errors=True)


def _check_output(output: Path) -> None:
    """Raises UsageError where something that is no image is in the way."""
    if output.is_dir() and any(output.iterdir()) and not (output / DESCRIPTION).exists():
        raise UsageError(
            f"{output} holds files that are not an image.",
            "It would be replaced as a whole.",
            "Name a new or empty folder, or that of an earlier build, with -o.",
        )
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file.", fix="Name a folder with -o.")


def _publish(draft: Path, output: Path) -> None:
    draft.chmod(0o755)
    old = draft.with_name(draft.name + "-old")
    if output.exists():
        output.rename(old)
    draft.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _build(
    run: Runner, family: Family, recipe: Recipe, cache: Path, draft: Path, work: Path, name: str
) -> dict[str, Any]:
    root = work / "root"
    indexes = base.make(run, family, recipe, root, cache, work)
    name = name or "gridmachine-" + datetime.fromtimestamp(run.epoch_s, UTC).strftime("%Y.%m.%d")
    contents = _furnish(run, family, recipe, root, cache, work, indexes)
    run.step("disk")
    raw = work / "disk.raw"
    boot = work / "boot"
    uefi = disk.boot_folder(boot, work / "kernel", work / "initrd", root)
    disk.write(run, raw, root, boot, recipe.disk_gb, name)
    shutil.rmtree(root)
    written = _write_formats(run, recipe, raw, draft, work, name)
    run.step("lists and digests")
    return _describe(run, recipe, contents, draft, name, written, uefi)


def _furnish(
    run: Runner, family: Family, recipe: Recipe, root: Path, cache: Path, work: Path,
    indexes: dict[str, str],
) -> _Contents:  # fmt: skip
    """Everything between the packages and the disk; leaves `kernel` and `initrd` in `work`."""
    python = family.python(recipe)
    run.step("worker")
    rootfiles.put_files(root, recipe)
    rootfiles.make_users(run, root)
    wheels = worker_files.put_libraries(
        run, root, python, cache / "wheels", recipe.wheelhouse, work
    )
    worker_files.put_program(root)
    if "mariadb" in recipe.parts:
        run.step("database")
        rootfiles.make_database(run, root)
    for script in recipe.scripts:
        run.step(f"script {script.name}")
        rootfiles.run_script(run, root, script)
    run.step("services, bytecode, cleaning")
    rootfiles.set_units(run, root)
    worker_files.compile_all(run, root, python)
    packages = family.installed(root, lambda command, what: run.run(command, what))
    kernel, initrd = family.boot_files(root)
    shutil.copyfile(kernel, work / "kernel")
    shutil.copyfile(initrd, work / "initrd")
    release = kernel.name.removeprefix("vmlinuz-") if "-" in kernel.name else kernel.parent.name
    rootfiles.clean(root, family.leavings())
    if found := seal.problems(root):
        raise BuildError(
            "The image is not sealed, and was not written.",
            "; ".join(found[:10]) + (f"; and {len(found) - 10} more" if len(found) > 10 else ""),
            "Remove these at the end of your --script; an image goes to every desktop.",
        )
    return _Contents(packages, wheels, indexes, release)


def _write_formats(
    run: Runner, recipe: Recipe, raw: Path, draft: Path, work: Path, name: str
) -> dict[str, Path]:
    written = {}
    for kind in recipe.formats:
        run.step(f"{kind} file")
        path = written[kind] = draft / f"{name}.{kind}"
        if kind == "qcow2":
            formats.write_qcow2(run, raw, path)
        elif kind == "vhdx":
            formats.write_vhdx(run, raw, path, name)
        else:
            # The name is also inside of the file.
            vmdk = work / f"{name}-disk1.vmdk"
            formats.write_vmdk(run, raw, vmdk)
            about = ova.Appliance(name, officegrid.__version__, recipe.family, raw.stat().st_size)
            ova.write(path, about, vmdk, run.epoch_s)
            vmdk.unlink()
    return written


def _describe(
    run: Runner, recipe: Recipe, contents: _Contents, draft: Path, name: str,
    written: dict[str, Path], uefi: bool,
) -> dict[str, Any]:  # fmt: skip
    """Write image.json, the lists and SHA256SUMS; gives the former."""
    files = {
        kind: {"name": path.name, "size": path.stat().st_size, "sha256": _digest(path)}
        for kind, path in written.items()
    }
    version = officegrid.__version__
    start = f"cron every {recipe.every_minutes} min" if recipe.start == "cron" else recipe.start
    about = {
        "system": f"{recipe.family} {recipe.release}", "kernel": contents.kernel,
        "parts": ",".join(recipe.parts) or "none", "start": start,
        "boot": "BIOS, UEFI" if uefi else "BIOS", "disk_gb": str(recipe.disk_gb),
    }  # fmt: skip
    if recipe.packages:
        about["packages"] = ",".join(recipe.packages)
    for script in recipe.scripts:
        digest = hashlib.sha256(script.read_bytes()).hexdigest()[:16]
        about[f"script {script.name}"[:64]] = digest
    for number, (address, digest) in enumerate(sorted(contents.indexes.items())):
        about[f"index {number + 1}"] = f"{address} {digest[:16]}"
    description = {
        "name": name, "worker_version": version, "built_at": float(run.epoch_s), "about": about,
        "files": files,
    }  # fmt: skip
    first = next(iter(files.values()))
    texts = {
        DESCRIPTION: json.dumps(description, indent=2) + "\n",
        f"{name}.spdx.json": sbom.document(
            name, version, run.epoch_s, recipe.family, recipe.release, contents.packages,
            contents.wheels, str(first["name"]), str(first["sha256"]),
        ),
        "packages.txt": sbom.plain_list(contents.packages, contents.wheels, version),
    }  # fmt: skip
    for member, text in texts.items():
        (draft / member).write_text(text, encoding="utf-8")
    sums = [f"{file['sha256']}  {file['name']}" for file in files.values()]
    sums += [f"{_digest(draft / member)}  {member}" for member in texts]
    (draft / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    for path in draft.iterdir():
        os.chmod(path, 0o644)
    return description


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
