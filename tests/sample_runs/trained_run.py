"""Settings of the run that training's tests share."""

from __future__ import annotations

from plurum.training import TrainSettings

__all__ = ["ARCHS", "SETTINGS"]

ARCHS = ("test_byobnet", "test_resnet")
SETTINGS = TrainSettings(archs=ARCHS, epochs=4, batch_size=16, learning_rate=5e-3, precision="fp32")
