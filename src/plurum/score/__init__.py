"""Score more images than one machine can: on Ray, on Spark, or in a loop of your own, without a server."""

from plurum.score.job import ScoreJob, ScoreOptions, open_job
from plurum.score.scorer import Scorer

__all__ = ["ScoreJob", "ScoreOptions", "Scorer", "open_job"]
