"""Web page for people: classify images, review predictions, and export the decisions."""

from plurum.client.ui.app import run_ui, ui_app
from plurum.client.ui.connection import Connection
from plurum.client.ui.corrections import write_corrections
from plurum.client.ui.store import ReviewStore
from plurum.settings.client import UiSettings

__all__ = ["Connection", "ReviewStore", "UiSettings", "run_ui", "ui_app", "write_corrections"]
