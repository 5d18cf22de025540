"""ONNX graphs of members and of the whole vote, in every precision."""
