"""A release on trial beside the public one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plurum.spec import Metadata

__all__ = ["ReleaseTrial"]


class ReleaseTrial(Metadata):
    """A release that handles some requests in place of the public one, or is compared with it.

    Attributes:
        release: The release's tag.
        percent: The percentage of requests that it handles, 0 to 100.
        shadow: If True, its responses are only compared with the public release's.
    """

    release: str
    percent: Annotated[float, Field(ge=0, le=100)] = 0.0
    shadow: bool = False
