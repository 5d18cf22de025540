"""The library that asks a served ensemble; brings neither torch nor, before a client is made, tritonclient."""

from plurum.client.asynchronous import AsyncEnsembleClient
from plurum.client.client import EnsembleClient
from plurum.client.folders import image_files
from plurum.client.frame import frame_with_predictions, predictions_to_frame
from plurum.client.listing import Listing, listing_from_names
from plurum.client.patients import PatientAnswer, PatientPool, patients_from_answers
from plurum.client.payload import AnyImage
from plurum.client.predictions import Answer, Failure, Prediction, Served
from plurum.client.report import answers_report, json_line, patients_report, table_from_answers, table_from_patients
from plurum.client.transport import Tls

__all__ = [
    "Answer",
    "AnyImage",
    "AsyncEnsembleClient",
    "EnsembleClient",
    "Failure",
    "Listing",
    "PatientAnswer",
    "PatientPool",
    "Prediction",
    "Served",
    "Tls",
    "answers_report",
    "frame_with_predictions",
    "image_files",
    "json_line",
    "listing_from_names",
    "patients_from_answers",
    "patients_report",
    "predictions_to_frame",
    "table_from_answers",
    "table_from_patients",
]
