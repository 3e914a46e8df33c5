"""Trained detectors in use: export, prediction, the page.

Before any runtime is imported: unless told not to, they report to their makers and leave files in the home.
OpenVINO and NNCF do without the package that reports for them.
"""

import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)
