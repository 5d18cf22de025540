"""Client library for a served ensemble; imports no torch, and tritonclient only when a client is created."""

from plurum.client.bulk.frame import frame_with_predictions, predictions_to_frame
from plurum.client.bulk.listing import Listing, image_files, listing_from_names
from plurum.client.bulk.patients import PatientAnswer, PatientPool, patients_from_answers
from plurum.client.bulk.report import (
    answers_report,
    json_line,
    patients_report,
    table_from_answers,
    table_from_patients,
)
from plurum.client.connection.addresses import Tls
from plurum.client.connection.asynchronous import AsyncEnsembleClient
from plurum.client.connection.client import EnsembleClient
from plurum.client.connection.payload import AnyImage
from plurum.client.connection.predictions import Answer, Failure, Prediction, Served
from plurum.client.slides.heat_maps import heat_map, write_slide
from plurum.client.slides.slide_answers import SlidePrediction
from plurum.client.slides.slides import SlideSettings, predict_slide

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
    "SlidePrediction",
    "SlideSettings",
    "Tls",
    "answers_report",
    "frame_with_predictions",
    "heat_map",
    "image_files",
    "json_line",
    "listing_from_names",
    "patients_from_answers",
    "patients_report",
    "predict_slide",
    "predictions_to_frame",
    "table_from_answers",
    "table_from_patients",
    "write_slide",
]
