"""ONNX graphs of members that are not timm models: reading, conversion, and their answers in PyTorch."""
