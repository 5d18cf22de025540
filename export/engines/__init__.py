"""TensorRT engines, built and checked."""
