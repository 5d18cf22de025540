"""The gateway's connections: limits, TLS handshakes, keys and logging."""
