"""Start, supervise and stop a Triton server; includes the Python-based backends of the embedded server."""

from plurum.serving.installation import find_triton
from plurum.serving.supervisor import SupervisionSettings, Supervisor
from plurum.serving.triton.cores import usable_cores
from plurum.serving.triton.server import Server, Urls
from plurum.settings.serving import ServerSettings

__all__ = ["Server", "ServerSettings", "SupervisionSettings", "Supervisor", "Urls", "find_triton", "usable_cores"]
