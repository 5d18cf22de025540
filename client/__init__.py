"""The library that asks a served ensemble; brings neither torch nor, before a client is made, tritonclient."""

from plurum.client.client import EnsembleClient
from plurum.client.folders import image_files
from plurum.client.payload import AnyImage
from plurum.client.predictions import Answer, Failure, Prediction, Served
from plurum.client.report import csv_report, json_line, table_from_answers

__all__ = [
    "Answer",
    "AnyImage",
    "EnsembleClient",
    "Failure",
    "Prediction",
    "Served",
    "csv_report",
    "image_files",
    "json_line",
    "table_from_answers",
]
