"""The Triton server to start, and the Python environment in which its Python models run."""

from plurum.serving.installation.environment import PACKAGES, private_environment
from plurum.serving.installation.interpreters import Interpreter
from plurum.serving.installation.triton import TritonInstallation, find_triton, lay_out

__all__ = ["PACKAGES", "Interpreter", "TritonInstallation", "find_triton", "lay_out", "private_environment"]
