"""HTTP gateway between a network and Triton: keys, limits, deadlines and retries; it calls Triton over local gRPC."""

from plurum.serving.gateway.server import GatewayUrls, run_gateway
from plurum.settings.serving import GatewaySettings

__all__ = ["GatewaySettings", "GatewayUrls", "run_gateway"]
