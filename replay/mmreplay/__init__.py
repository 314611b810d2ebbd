"""mmreplay: a trace-replay performance predictor for Linux memory-map locking."""

__version__ = "0.1.0"
