"""From ``git clone`` to the first adapter that serves callers, on a machine with Python, git and make.

Clones this repository into a folder of its own and runs ``make demo`` there, as the first page says, until
an adapter is promoted; then all of it is stopped and removed. The packages come from where pip gets them.

    python bench/first_adapter.py [--from REPOSITORY] [--port-base 9300] [--quick] [--json FILE]

``--quick``: with the virtual environment of this checkout in place of a new one. Prints one JSON object:
seconds since the start of the clone until it was there, until everything was installed, until the agents'
first day was over, until the night was over, until an adapter answered its first callers and until one was
promoted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.programs import ROOT, scratch

MOST_SECONDS = 5400.0
STOP_SECONDS = 60.0
MARKS = (
    ("installed", re.compile(r"==> \.venv is ready|== start")),
    ("day one over", re.compile(r"== night")),
    ("night over", re.compile(r"== day two")),
    ("first callers", re.compile(r"@[0-9a-f]+ is canary")),
    ("promoted", re.compile(r"@[0-9a-f]+ is promoted")),
)
"""What the screen says first when something has happened."""


def measure(repository: str, folder: Path, port_base: int, venv: Path | None) -> dict[str, float]:
    """Seconds until each of ``MARKS``. Raises RuntimeError when the demo ends, or lasts, without them."""
    began = time.monotonic()
    clone = folder / "nightschool"
    subprocess.run(["git", "clone", "--quiet", repository, str(clone)], check=True)
    found = {"cloned": time.monotonic() - began}
    command = ["make", "demo", f"DEMO_OPTIONS=--port-base {port_base}"]
    environment = {
        n: v for n, v in os.environ.items() if n != "PYTHONPATH" and "NIGHTSCHOOL" not in n
    }
    if venv is not None:
        command = [str(venv / "bin" / "nightschool"), "demo", "--port-base", str(port_base)]
        environment["PYTHONPATH"] = str(clone)
    demo = subprocess.Popen(
        command,
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            passed = time.monotonic() - began
            for name, said in MARKS:
                if name not in found and said.search(line):
                    found[name] = passed
            if "promoted" in found:
                return {name: round(seconds, 1) for name, seconds in found.items()}
            if passed > MOST_SECONDS:
                break
        raise RuntimeError(f"no adapter was promoted: {found}")
    finally:
        stop(demo)


def stop(demo: subprocess.Popen[str]) -> None:
    """As Ctrl-C does; whoever is left then is killed."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(demo.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            demo.communicate(timeout=STOP_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="repository", default=str(ROOT), help="what git clones")
    parser.add_argument("--port-base", type=int, default=9300, help="the demo takes seven ports")
    parser.add_argument("--quick", action="store_true", help="without a new virtual environment")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    venv = Path(sys.prefix) if options.quick else None
    with scratch("first-adapter") as folder:
        found = measure(options.repository, folder, options.port_base, venv)
    text = json.dumps({"new_environment": not options.quick, "seconds": found}, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
