"""Write the key from which a repository's voter draws audits.

The key is in the folder of each model that draws, in a file that only its owner may read, and not in `ensemble.json`,
which clients read: nobody is to know beforehand what will be drawn.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from plurum.files import write_text
from plurum.regular_files import read_regular

__all__ = ["share_audit_draw", "write_audit_draw"]

# `model_repository/voter/audit.py` reads this file beside itself.
_AUDIT_FILE = "audit.json"
_KEY_BYTES = 32


def write_audit_draw(version: Path, rate: float, former: Path) -> None:
    """Write how `version`, the folder of a model's version, draws audits.

    Args:
        version: Folder of the model's version.
        rate: Probability of being drawn, 0 to 1.
        former: The same folder of the export that this one replaces; may not exist. Its key is kept, so that a
            patient's draw stays.
    """
    draw = {"rate": rate, "key": _key_of(former) or secrets.token_hex(_KEY_BYTES)}
    write_text(version / _AUDIT_FILE, json.dumps(draw) + "\n", private=True)


def share_audit_draw(version: Path, other: Path) -> None:
    """Let the model in `other` draw as that in `version`."""
    write_text(other / _AUDIT_FILE, (version / _AUDIT_FILE).read_text(encoding="utf-8"), private=True)


def _key_of(former: Path) -> str | None:
    try:
        return bytes.fromhex(json.loads(read_regular(former / _AUDIT_FILE))["key"]).hex()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
