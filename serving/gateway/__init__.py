"""The door to a network: an HTTP gateway that owns what Triton does not, and asks it over loopback gRPC."""

from plurum.serving.gateway.server import GatewayUrls, run_gateway
from plurum.serving.gateway.settings import GatewaySettings

__all__ = ["GatewaySettings", "GatewayUrls", "run_gateway"]
