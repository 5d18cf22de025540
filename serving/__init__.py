"""Starting, watching and ending a Triton server, and the Python-based backends of the embedded one."""

from plurum.serving.cores import usable_cores
from plurum.serving.installation import find_triton
from plurum.serving.server import Server, Urls
from plurum.serving.settings import ServerSettings
from plurum.serving.supervisor import SupervisionSettings, Supervisor

__all__ = ["Server", "ServerSettings", "SupervisionSettings", "Supervisor", "Urls", "find_triton", "usable_cores"]
