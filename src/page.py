"""A local web page to drop images on: verdict, threshold, heat map and the most similar normal images."""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from defects import cli
from defects.deploy.model import find_note, load_model
from defects.deploy.similar import load_normals
from defects.messages import UserError
from defects.versions import check_versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("model", type=Path, help="an export's folder, or one of the models in it")
    parser.add_argument("--normals", type=Path, help="a folder of images in place of the export's")
    parser.add_argument("--port", type=cli.positive, default=7860)
    parser.add_argument("--no-browser", action="store_true", help="open none")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    if model.meta.needs_masks:
        raise UserError(
            f"{model.meta.experiment} needs a mask for each image: use src/predict.py --roi FOLDER"
        )
    normals = load_normals(model.path.parent, arguments.normals, model.meta)
    if note := find_note(model.meta):
        print(note, file=sys.stderr)
    with TemporaryDirectory() as uploads:
        # Read when Gradio is imported, which takes seconds: not before the model is known to load.
        os.environ |= {"GRADIO_TEMP_DIR": uploads, "GRADIO_ANALYTICS_ENABLED": "False"}
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        check_versions(["gradio"])
        from defects.deploy.prediction_page import build_prediction_page, serve

        serve(build_prediction_page(model, normals), arguments.port, not arguments.no_browser)


if __name__ == "__main__":
    cli.run(main)
