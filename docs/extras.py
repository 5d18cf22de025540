"""Write the table of extras in installing.md: what each extra downloads. Needs Python 3.11, uv and a package index.

python docs/extras.py
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "installing.md"
MARKS = ("<!-- extras -->\n", "<!-- /extras -->")
PYTHON = "3.12"


def extras() -> dict[str, str]:
    """Return the extras of pyproject.toml, each with the comment above it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    found = re.findall(r"^((?:# .*\n)*)([a-z0-9-]+) = \[", section, re.MULTILINE)
    return {name: " ".join(line.removeprefix("# ") for line in comment.splitlines()) for comment, name in found}


def downloads(extra: str) -> dict[str, int]:
    """Return the bytes of each package that `extra` installs on x86-64 Linux."""
    command = [
        "uv", "pip", "compile", "--quiet", "--format", "pylock.toml", "--python-version", PYTHON,
        "--python-platform", "x86_64-manylinux_2_36", "--extra", extra, "pyproject.toml",
    ]  # fmt: skip
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {package["name"]: _bytes(package) for package in tomllib.loads(outcome.stdout)["packages"]}


def _bytes(package: dict[str, list[dict[str, object]]]) -> int:
    fitting = [
        int(str(wheel.get("size", 0)))
        for wheel in package.get("wheels", [])
        if re.search(r"(x86_64|-any)\.whl$", str(wheel["url"]))
    ]
    return max(fitting, default=0)


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| extra | for | packages | of these CUDA's | MB to download |", "|---|---|---|---|---|"]
    for extra, purpose in extras().items():
        packages = downloads(extra)
        cuda = sum(name.startswith(("nvidia-c", "nvidia-n", "cuda-")) for name in packages)
        size = sum(packages.values()) / 1e6
        lines.append(f"| `{extra}` | {purpose} | {len(packages)} | {cuda} | {size:,.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page.partition(MARKS[0])[0], page.partition(MARKS[1])[2]
    PAGE.write_text(f"{head}{MARKS[0]}{table()}{MARKS[1]}{tail}", encoding="utf-8")
