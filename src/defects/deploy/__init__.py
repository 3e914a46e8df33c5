"""Trained detectors in use: export, prediction, the page."""
