"""Clients of a served ensemble, over gRPC and HTTP."""
