"""The growth of cost with members, classes, image size and clients."""
