"""Measurements. Each checks its answer as well as its time, and prints JSON lines."""
