"""Rare-defect inspection: from raw images to a submission that scores what validation promised."""
