"""What is in an image: an SPDX 2.3 document (ISO/IEC 5962, JSON form) and a plain list.

Packages of the distribution come with version, architecture, source package and the licence names
of their copyright file; Python libraries with the digest of the wheel they came from. Identifiers
for scanners are package URLs (purl).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from officegrid.image.ext4 import fixed_uuid
from officegrid.image.family import Package
from officegrid.image.worker_files import Wheel

_NONE = "NOASSERTION"
_PURL = {"debian": "deb/debian", "el9": "rpm/almalinux"}


def document(
    name: str, version: str, epoch_s: int, family: str, release: str,
    packages: Sequence[Package], wheels: Sequence[Wheel], file: str, sha256: str,
) -> str:  # fmt: skip
    """The SPDX document; `file` and `sha256` are one of the image's files and its digest."""
    image = _entry("Image", name, "", "SPDXRef-Image", "")
    image["primaryPackagePurpose"] = "OPERATING-SYSTEM"
    image["checksums"] = [{"algorithm": "SHA256", "checksumValue": sha256}]
    image["packageFileName"] = file
    ours = _entry("officegrid", version, f"pkg:pypi/officegrid@{version}", "SPDXRef-officegrid", "")
    ours["licenseDeclared"] = "Apache-2.0"
    entries = [image, ours]
    entries += [_system(package, family, release) for package in packages]
    entries += [_library(wheel) for wheel in wheels]
    relations = [
        {
            "spdxElementId": "SPDXRef-Image",
            "relationshipType": "CONTAINS",
            "relatedSpdxElement": entry["SPDXID"],
        }
        for entry in entries[1:]
    ]
    described = {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-Image",
    }
    created = datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    whole = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"urn:uuid:{fixed_uuid(name, sha256)}",
        "creationInfo": {"created": created, "creators": [f"Tool: officegrid-{version}"]},
        "packages": entries,
        "relationships": [described, *relations],
    }
    return json.dumps(whole, indent=1) + "\n"


def _entry(name: str, version: str, purl: str, identifier: str, supplier: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "SPDXID": identifier, "name": name, "versionInfo": version, "downloadLocation": _NONE,
        "filesAnalyzed": False, "licenseConcluded": _NONE, "licenseDeclared": _NONE,
        "copyrightText": _NONE, "supplier": supplier or _NONE,
    }  # fmt: skip
    if purl:
        entry["externalRefs"] = [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl,
            }
        ]
    return entry


def _system(package: Package, family: str, release: str) -> dict[str, Any]:
    purl = (
        f"pkg:{_PURL[family]}/{quote(package.name)}@{quote(package.version, safe='')}"
        f"?arch={package.architecture}&distro={release}"
    )
    supplier = "Organization: Debian" if family == "debian" else "Organization: AlmaLinux"
    identifier = f"SPDXRef-{family}-{_safe(package.name)}-{_safe(package.architecture)}"
    entry = _entry(package.name, package.version, purl, identifier, supplier)
    if package.source:
        entry["sourceInfo"] = f"built from {package.source}"
    if package.licences:
        # Names as the distribution words them: close to SPDX's, but not always the same.
        entry["licenseComments"] = "named in the package: " + "; ".join(package.licences)
    return entry


def _library(wheel: Wheel) -> dict[str, Any]:
    name = re.sub(r"[-_.]+", "-", wheel.name).lower()
    purl = f"pkg:pypi/{name}@{wheel.version}"
    entry = _entry(name, wheel.version, purl, f"SPDXRef-python-{_safe(name)}", "")
    entry["packageFileName"] = wheel.file
    entry["checksums"] = [{"algorithm": "SHA256", "checksumValue": wheel.sha256}]
    if wheel.licence:
        entry["licenseComments"] = f"named in the wheel: {wheel.licence}"
    return entry


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", text)


def plain_list(packages: Sequence[Package], wheels: Sequence[Wheel], version: str) -> str:
    """One line for each part: where it comes from, name, version."""
    lines = [f"system {package.name} {package.version}" for package in packages]
    lines += [f"python {wheel.name} {wheel.version}" for wheel in wheels]
    return "\n".join([*lines, f"python officegrid {version}"]) + "\n"
