"""How the page is served."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["UiSettings"]


@dataclass(frozen=True)
class UiSettings:
    """Options of `plurum ui`.

    Attributes:
        host: Address to listen on.
        port: 0 takes a free one.
        max_image_mib: Of one image, encoded.
        recent_mib: Of all images together that are remembered until they are sent to review or forgotten.
        uploads: Images that are decoded and sent to the server at once; others wait.
    """

    host: str = "127.0.0.1"
    port: int = 8085
    max_image_mib: int = 64
    recent_mib: int = 256
    uploads: int = 4
