"""Compare ways to average: weights over a training, and a member's probabilities over an image and its mirror image."""
