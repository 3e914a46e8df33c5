"""Rare-defect inspection: from raw images to a submission that scores what validation estimated.

This is the one place where importing the program changes how other libraries behave. They read the
environment variables when they are loaded; a value that is set already stays.
"""

import os
import sys

# A file of some bytes can claim to be an image of many gigabytes: OpenCV refuses more pixels than this.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
# No usage figures are sent, and no network is asked: by ONNX Runtime, OpenVINO (which allows for a missing
# telemetry package) and albumentations.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2  # noqa: E402
from PIL import Image  # noqa: E402

# A broken image is reported by this program, in one line with its name, and not by OpenCV as well.
if hasattr(cv2, "setLogLevel"):  # OpenCV 4
    cv2.setLogLevel(0)
else:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Pillow's own limit would only warn. What is too large is refused by its header, before Pillow decodes it.
Image.MAX_IMAGE_PIXELS = None
