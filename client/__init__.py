"""The library that asks a served ensemble; brings neither torch nor, before a client is made, tritonclient."""

from plurum.client.asynchronous import AsyncEnsembleClient
from plurum.client.client import EnsembleClient
from plurum.client.folders import image_files
from plurum.client.frame import predictions_to_frame
from plurum.client.payload import AnyImage
from plurum.client.predictions import Answer, Failure, Prediction, Served
from plurum.client.report import csv_report, json_line, table_from_answers
from plurum.client.transport import Tls

__all__ = [
    "Answer",
    "AnyImage",
    "AsyncEnsembleClient",
    "EnsembleClient",
    "Failure",
    "Prediction",
    "Served",
    "Tls",
    "csv_report",
    "image_files",
    "json_line",
    "predictions_to_frame",
    "table_from_answers",
]
