from lightning_da.callbacks.check_leaks import CheckLeaks
from lightning_da.callbacks.compile_layers import CompileLayers
from lightning_da.callbacks.keep_random_state import KeepRandomState
from lightning_da.callbacks.label_free_scores import LabelFreeScores
from lightning_da.callbacks.log_model import LogModel
from lightning_da.callbacks.reconstructions import Reconstructions
from lightning_da.callbacks.record_run import RecordRun
from lightning_da.callbacks.stop_at_divergence import StopAtDivergence
from lightning_da.callbacks.stop_at_signal import StopAtSignal
from lightning_da.callbacks.test_figures import TestFigures
from lightning_da.callbacks.transfer_curve import TransferCurve
from lightning_da.callbacks.write_predictions import WritePredictions

__all__ = [
    "CheckLeaks",
    "CompileLayers",
    "KeepRandomState",
    "LabelFreeScores",
    "LogModel",
    "Reconstructions",
    "RecordRun",
    "StopAtDivergence",
    "StopAtSignal",
    "TestFigures",
    "TransferCurve",
    "WritePredictions",
]
