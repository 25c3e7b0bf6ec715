"""House rules that no linter knows: sizes, purity of core, no stray words, no dead modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "officegrid"
MODULES = sorted(SOURCE.rglob("*.py"))
MOST_LINES = 400
MOST_FUNCTION_LINES = 60
CORE_MAY_IMPORT = {
    "__future__", "base64", "bisect", "collections", "collections.abc", "dataclasses", "enum",
    "hashlib", "heapq", "ipaddress", "itertools", "math", "operator", "re", "typing",
}  # fmt: skip


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_modules_fit_their_readers(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= MOST_LINES, f"{lines} lines: split it"
    tree = ast.parse(text)
    assert not text.strip() or ast.get_docstring(tree) or path.name == "__init__.py", "no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if "migrations" in path.parts:  # generated once, read by nobody, never changed
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MOST_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", sorted((SOURCE / "core").glob("*.py")), ids=_name)
def test_core_imports_only_what_is_pure(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name in CORE_MAY_IMPORT or name.startswith("officegrid.core"), name


def test_every_module_is_used_by_another_or_is_an_entry_point() -> None:
    entry_points = {
        "officegrid.testing.vboxmanage.vbox_headless",  # copied, and started by their path
        "officegrid.testing.vboxmanage.vbox_svc",
        "officegrid.testing.hyperv.vmwp",
        "officegrid.worker.harness",  # started by its path
        "officegrid.worker.release_probe",  # started by its name
        "officegrid.worker.rowwrite",  # loaded by the harness
        "officegrid.worker.warden",
    }
    imported: set[str] = set()
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    commands = {f"officegrid.cli.{path.stem}" for path in (SOURCE / "cli").glob("*.py")}
    for path in MODULES:
        if path.name in ("__init__.py", "__main__.py") or "migrations" in path.parts:
            continue
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        assert module in imported | entry_points | commands, f"nothing uses {module}"


def test_the_lock_file_names_no_host_and_pins_everything() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            assert "==" in line, line


def test_every_dependency_is_explained() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    explained = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "adr").glob("*.md")
    ).lower()
    for requirement in wanted:
        name = requirement.partition(">")[0].partition("[")[0].strip()
        assert name in explained, f"{name} is in no ADR"


def test_test_files_outside_packages_have_names_of_their_own() -> None:
    """Two modules of one name cannot both be imported."""
    seen: dict[str, Path] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if (path.parent / "__init__.py").exists() or "inside" in path.parts:
            continue
        assert path.name not in seen, f"{path} and {seen[path.name]}"
        seen[path.name] = path


def test_every_program_that_a_test_needs_is_installed_by_ci() -> None:
    comes_with = {  # another program of the same package, or a package that is always there
        "apt-get": "", "dpkg-deb": "", "mount": "", "setpriv": "", "unshare": "",
        "debugfs": "mke2fs", "e2fsck": "mke2fs", "ss": "ip", "virtlogd": "libvirtd",
        "wineserver": "wine", "networkctl": "systemd-analyze", "systemctl": "systemd-analyze",
        "systemd-sysusers": "systemd-analyze",
    }  # fmt: skip
    installed = {"", *re.findall(r"([\w.-]+):[\w.-]+", (ROOT / ".ci" / "run").read_text())}
    assert set(comes_with.values()) <= installed
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need":
                for word in node.args:
                    if isinstance(word, ast.Constant):
                        program = str(word.value)
                        assert comes_with.get(program, program) in installed, (
                            f"{_name(path)} needs {program}, which .ci/run does not install"
                        )
