"""Asks whether any locked dependency has a known vulnerability.

`python -m deploy.audit_dependencies` exits with 1 when one has. Where no service can be asked, it
says so and exits with 0, so that the tests can be run on a machine without a network. pip-audit
alone would not do: a package that the service does not know counts as skipped there, and a service
that knows none looks like a clean result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[1]
_SERVICES: Final = ("pypi", "osv")  # asked in this order, until one answers
_TIMEOUT_S: Final = 10

IGNORED: Final[dict[str, str]] = {}
"""Vulnerabilities that are accepted: id → why they cannot be mended, and why they do not matter."""


def locked_requirements(uv: str) -> str:
    """What uv.lock pins for this project, as a requirements file.

    Without the benchmark against another framework, which conflicts with the rest.
    """
    export = [uv, "export", "--frozen", "--all-extras", "--all-groups", "--no-emit-project"]
    export += ["--no-group", "bench"]
    done = subprocess.run(
        [*export, "--quiet"], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"uv could not export what is locked:\n{done.stderr}")
    return done.stdout


def ask(requirements: Path, options: Sequence[str]) -> tuple[list[Any] | None, str]:
    """Ask one service about all packages.

    Returns:
        pip-audit's account of each package, None if there was no answer; and what it said.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements)]
    command += ["--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off"]
    command += ["--timeout", str(_TIMEOUT_S), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    try:
        packages: list[Any] = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return None, said
    return packages, said


def report(packages: list[Any]) -> tuple[list[str], list[str], int]:
    """What was found.

    Returns:
        A line per vulnerability that is not ignored, the names of packages that the service does
        not know, and how many it does.
    """
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}"
        f" (fixed in {', '.join(flaw['fix_versions']) or 'no version yet'})"
        for package in packages
        for flaw in package.get("vulns", [])
        if not {flaw["id"], *flaw["aliases"]} & IGNORED.keys()
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    return found, unknown, len(packages) - len(unknown)


def main() -> int:
    """Audit, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m deploy.audit_dependencies")
    parser.add_argument("--uv", default="uv", help="the uv to read the lock file with")
    parser.add_argument(
        "--osv-url", help="ask this service alone, which speaks as api.osv.dev does"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(locked_requirements(options.uv))
        services = {name: ["--vulnerability-service", name] for name in _SERVICES}
        if options.osv_url:
            url = options.osv_url
            services = {url: ["--vulnerability-service", "osv", "--osv-url", url]}
        refusals = []
        for name, how in services.items():
            packages, said = ask(requirements, how)
            found, unknown, known = report(packages or [])
            if known:
                sys.stdout.write("".join(f"{line}\n" for line in found))
                sys.stdout.write(f"{name}: {len(found)} vulnerabilities in {known} packages\n")
                if unknown:
                    sys.stderr.write(f"WARNING: {name} does not know {', '.join(unknown)}\n")
                return 1 if found else 0
            refusals.append(f"{name} ({'knows none of them' if packages else said})")
    sys.stderr.write(
        "WARNING: dependencies were NOT audited, since no service could be asked:"
        f" {'; '.join(refusals)}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
