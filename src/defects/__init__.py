"""Rare-defect inspection: from raw images to a submission that scores what validation estimated."""

import os
import sys

# OpenCV reads it when it is loaded. A file of some bytes can claim to be an image of many gigabytes.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))

# Nothing is told of what runs here: ONNX Runtime and OpenVINO would send usage figures, unasked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # as if it were not installed, which they allow for
