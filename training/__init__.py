"""Clicks to release: sequences, model, loss, evaluation, export, publication."""

import os

# The one thing that an import does here, because OpenMP reads it once, when torch is loaded.
# Threads that spin while they wait make training several times slower as soon as anything else
# wants one of the cores; threads that sleep do not.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
