"""Rare-defect inspection: from raw images to a submission that scores what validation promised."""

import os

# OpenCV reads it when it is loaded. A file of some bytes can claim to be an image of many gigabytes.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
