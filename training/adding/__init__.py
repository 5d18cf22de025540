"""Members from elsewhere: any PyTorch module, and ONNX files."""
