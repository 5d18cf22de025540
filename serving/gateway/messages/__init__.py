"""Requests and responses of the gateway: bodies, forms, tensors and JSON."""
