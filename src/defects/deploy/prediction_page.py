"""The local web page: its components, what happens when one of them is used, and its parts as HTML.

Pictures are part of the HTML, so that none has to be stored to be shown.
"""

import os
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import cv2
import gradio as gr
import numpy as np

from defects.data.images import read_image, resize
from defects.deploy.model import ExportedModel, MapMeta, Meta, find_claim
from defects.deploy.prediction import Prediction, predict, relabel
from defects.deploy.regions import draw_overlay, scale_region
from defects.deploy.similar import Normals, shrink
from defects.evaluation.display_scales import AT_THRESHOLD, format_defect_score, format_probability
from defects.messages import UserError

HOST = "127.0.0.1"  # the page is for whoever sits at this computer
FILE_LIMIT = "100mb"  # of one image
MOST_IMAGES = 200  # at once
SIMILAR_IMAGES = 5  # normal images below an image
DELETE_UPLOADS = (600, 1800)  # seconds: how often uploads are looked through, and their age when deleted
PICTURE_PIXELS = 1200  # longer side of the picture that the page keeps of an image
ICON_PIXELS = 112  # longer side of the picture in the list
DRAWING_PIXELS = 640  # longer side from which a picture can be drawn on
BATCH_SIZE = 8
ON_CHOOSE = """element.addEventListener('click', event => {
    const row = event.target.closest('[data-place]');
    if (row) trigger('select', {place: Number(row.dataset.place)});
});"""
ON_ENLARGE = """element.addEventListener('click', event => {
    event.target.closest('.pictures')?.classList.toggle('large');
});"""
# None that would have to be fetched.
FONTS = {"font": ["system-ui", "Segoe UI", "Noto Sans", "sans-serif"], "font_mono": ["monospace"]}
PROGRESS = gr.Progress()
EMPTY = '<p class="nothing">Drop images to have them scored. They stay on this computer.</p>'
LEGEND = '<span class="scale"><i></i><span>normal</span><span>threshold</span><span>above</span></span>'


def build_prediction_page(model: ExportedModel, normals: Normals | None) -> gr.Blocks:
    """The page of one model; without `normals` no similar ones are shown."""
    actions = PageActions(model, normals)
    title = f"{model.meta.experiment}: surface inspection"
    plain = {"apply_default_css": False, "elem_classes": "inspection"}
    with gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=DELETE_UPLOADS, fill_width=True
    ) as page:
        results = gr.State([])
        chosen = gr.State(0)
        gr.HTML(build_heading(model), **plain)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                files = gr.File(label="Images", file_count="multiple", height=130, elem_id="drop")
                problems = gr.HTML(**plain)
                sliders = actions.build_sliders()
                listing = gr.HTML(js_on_load=ON_CHOOSE, elem_id="listing", **plain)
            with gr.Column(scale=3, min_width=360):
                detail = gr.HTML(EMPTY, js_on_load=ON_ENLARGE, elem_id="detail", **plain)
                similar = gr.HTML(elem_id="similar", **plain)
        # `files` is emptied, and so ready for the next drop.
        scored = [results, chosen, files, problems, listing, detail, similar]
        files.upload(
            actions.score, [files, *sliders], scored, show_progress_on=detail, api_visibility="private"
        )
        at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        listing.select(actions.choose, [results, *sliders], [chosen, listing, detail, similar], **at_once)
        for slider in sliders:
            inputs = [results, chosen, *sliders]
            slider.change(actions.relabel, inputs, [listing, detail], trigger_mode="always_last", **at_once)
    return page


def serve(page: gr.Blocks, port: int, browser: bool) -> None:
    """Serve it until Ctrl-C, on this computer alone. Raises UserError if the port is in use."""
    # The page is asked for once by the server itself, and no proxy knows the way to this computer.
    os.environ |= {"NO_PROXY": "*", "no_proxy": "*"}
    try:
        _, address, _ = page.queue(max_size=8).launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=browser,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            run_history=False,
            max_file_size=FILE_LIMIT,
            ssr_mode=False,
            theme=gr.themes.Default(primary_hue="blue", spacing_size="sm", radius_size="sm", **FONTS),
            css_paths=Path(__file__).with_name("page.css"),
        )
    except (OSError, OverflowError):
        raise UserError(f"port {port} is in use or not allowed: choose another with --port") from None
    print(f"{address} (Ctrl-C ends)")
    page.block_thread()


@dataclass(frozen=True)
class Result:
    """A prediction, and the image as JPEGs, large and small; empty ones if it could not be read."""

    prediction: Prediction
    picture: bytes = b""
    icon: bytes = b""


class PageActions:
    """What the page does when a component is used: each method returns the new values of other components.

    `values` are those of the sliders, a defect score for each of the model's targets. Gradio fills in
    `progress` and `event` by their types.
    """

    def __init__(self, model: ExportedModel, normals: Normals | None):
        self.model = model
        self.meta = model.meta
        self.normals = normals

    def build_sliders(self) -> list[gr.Slider]:
        """One for each target; those of classes are folded away below that of any defect."""
        *classes, overall = self.meta.targets
        if not classes:
            return [self._build_slider(overall, "Threshold")]
        last = self._build_slider(overall, "Threshold of any defect")
        with gr.Accordion("Thresholds of the classes", open=False):
            return [*(self._build_slider(target, target) for target in classes), last]

    def _build_slider(self, target: str, label: str) -> gr.Slider:
        own = format_probability(self.meta.threshold[target])
        note = f"{AT_THRESHOLD:g}: the model's own, a probability of {own}"
        return gr.Slider(0, 100, AT_THRESHOLD, step=0.1, label=label, info=note, buttons=["reset"])

    def score(self, files: list[str], progress: gr.Progress = PROGRESS, *values: float) -> tuple:
        """A drop, and the worst of its images to begin with."""
        paths = list(dict.fromkeys(Path(file) for file in files))
        results = []
        problems = []
        for count, result in enumerate(score_images(self.model, paths[:MOST_IMAGES]), start=1):
            if result.prediction.error:
                problems.append(result.prediction.error)
            else:
                results.append(result)
            progress((count, len(paths)), desc="scoring", unit="images")
        # By the model's own thresholds: by those of the sliders the list would jump while they are moved.
        results.sort(key=lambda result: -max(result.prediction.defect_score.values()))
        if len(paths) > MOST_IMAGES:
            problems.append(f"{len(paths) - MOST_IMAGES} more images left out: src/predict.py scores folders")
        return results, 0, None, build_problems(problems), *self._show(results, 0, values)

    def choose(self, results: list[Result], event: gr.EventData, *values: float) -> tuple:
        return event.place, *self._show(results, event.place, values)

    def relabel(self, results: list[Result], chosen: int, *values: float) -> tuple[str, str]:
        """List and detail by other thresholds: the model does not run again."""
        thresholds = {}
        for target, value in zip(self.meta.targets, values, strict=True):
            # The model's own where the field beside the slider is empty.
            thresholds[target] = AT_THRESHOLD if value is None else value
        detail = build_detail(results[chosen], thresholds, self.meta) if results else EMPTY
        return build_listing(results, thresholds, chosen, self.meta), detail

    def _show(self, results: list[Result], chosen: int, values: tuple) -> tuple[str, str, str]:
        """List, detail and similar normal images of the chosen result."""
        similar = ""
        if results and self.normals is not None:
            names = self.normals.find_most_similar(decode_picture(results[chosen].picture), SIMILAR_IMAGES)
            similar = build_similar(names, self.normals)
        return *self.relabel(results, chosen, *values), similar


def score_images(model: ExportedModel, files: list[Path]) -> Iterator[Result]:
    """In the order of `files`; what cannot be read has an error that names the file without its folder."""
    for prediction in predict(model, files, BATCH_SIZE):
        if prediction.error:
            error = prediction.error.replace(str(prediction.path), prediction.path.name)
            yield Result(replace(prediction, error=error))
        else:
            image = read_image(prediction.path, bits=model.meta.bits)
            picture = encode_jpeg(shrink(image, PICTURE_PIXELS))
            yield Result(prediction, picture, encode_jpeg(shrink(image, ICON_PIXELS)))


def draw_heat_map(picture: bytes, prediction: Prediction, meta: MapMeta) -> bytes:
    """A JPEG of the picture under its map, with the regions boxed in it.

    Small pictures are enlarged: boxes drawn before the browser enlarges them would be blurred.
    """
    image = decode_picture(picture)
    factor = max(1, DRAWING_PIXELS // max(image.shape[:2]))
    image = resize(image, (factor * image.shape[0], factor * image.shape[1]))
    regions = [scale_region(region, prediction.shape, image.shape[:2]) for region in prediction.regions]
    return encode_jpeg(draw_overlay(image, prediction.maps, meta, regions, prediction.inside))


def encode_jpeg(image: np.ndarray) -> bytes:
    """Of RGB uint8 [H, W, 3]."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def decode_picture(content: bytes) -> np.ndarray:
    """Of what encode_jpeg made."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


# --- HTML --------------------------------------------------------------------------------------------------


def build_heading(model: ExportedModel) -> str:
    facts = f"{model.meta.experiment}, fold {model.meta.fold} · {model.meta.detector} · {model.path.name}"
    claim = find_claim(model.meta, model.path.name)
    lines = [facts, f"By the model's own threshold: {claim}"] if claim else [facts]
    return "<h1>Surface inspection</h1>" + "".join(f"<p>{escape(line)}</p>" for line in lines)


def build_problems(problems: list[str]) -> str:
    """What could not be done, a line each."""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return f'<ul class="problems" role="alert">{items}</ul>' if problems else ""


def build_listing(results: list[Result], thresholds: dict[str, float], chosen: int, meta: Meta) -> str:
    """The images to choose from: a button each, `data-place` its position."""
    if not results:
        return ""
    defects = 0
    buttons = []
    for place, result in enumerate(results):
        prediction = relabel(result.prediction, thresholds, meta)
        defects += bool(prediction.labels)
        # Of several targets the surest one present or, failing that, the likeliest.
        target = max(prediction.labels or prediction.defect_score, key=prediction.defect_score.get)
        score = format_defect_score(prediction.defect_score[target], thresholds[target])
        pressed = "true" if place == chosen else "false"
        buttons.append(
            f'<button type="button" class="{_css_class(prediction)}" data-place="{place}" '
            f'aria-pressed="{pressed}">'
            f'<img alt="" src="{_jpeg_url(result.icon)}"><span>{escape(prediction.path.name)}</span>'
            f"<b>{escape(_headline(prediction))}</b><em>{score}</em></button>"
        )
    normal = len(results) - defects
    counts = f"{_count(len(results), 'image')}: {_count(defects, 'defect')}, {normal} normal"
    return f'<p class="counts">{counts}</p><div class="entries">{"".join(buttons)}</div>'


def build_detail(result: Result, thresholds: dict[str, float], meta: Meta) -> str:
    """Verdict, defect scores beside their thresholds, the image and its heat map."""
    prediction = relabel(result.prediction, thresholds, meta)
    pictures = _figure(result.picture, "Image")
    if prediction.maps is not None:
        heat_map = draw_heat_map(result.picture, prediction, meta.map)
        kinds = [region.kind for region in prediction.regions if region.kind != "defect"]
        title = f"Heat map, {_count(len(prediction.regions), 'box', 'boxes')}"
        if kinds:
            title += f": {', '.join(dict.fromkeys(kinds))}"
        pictures += _figure(heat_map, title, LEGEND)
    bars = "".join(_score_bar(prediction, target, threshold) for target, threshold in thresholds.items())
    return (
        f'<div class="verdict {_css_class(prediction)}" role="status"><b>{escape(_headline(prediction))}</b>'
        f"<span>{escape(prediction.path.name)}</span></div>"
        f'<div class="values">{bars}</div>'
        f'<div class="pictures">{pictures}</div>'
    )


def build_similar(names: list[str], normals: Normals) -> str:
    """The normal images of these names, in this order."""
    pictures = "".join(
        f'<figure title="{escape(name)}"><img alt="" src="{_jpeg_url(encode_jpeg(normals.images[name]))}">'
        f"<figcaption>{escape(name.rpartition('/')[2])}</figcaption></figure>"
        for name in names
    )
    title = f"Most similar of {_count(len(normals.names), 'normal image')}"
    return f'<h2>{title}</h2><div class="normals">{pictures}</div>'


def _score_bar(prediction: Prediction, target: str, threshold: float) -> str:
    """The defect score as a bar with a mark at the threshold, and in figures: five cells of a grid."""
    score = prediction.defect_score[target]
    css_class = "defect" if target in prediction.labels else "normal"
    return (
        f'<span>{escape(target)}</span><div class="bar {css_class}"><i style="width:{score:.1f}%"></i>'
        f'<u style="left:{threshold:.1f}%"></u></div>'
        f"<span>score <b>{format_defect_score(score, threshold)}</b></span>"
        f"<span>threshold {threshold:.1f}</span>"
        f"<span>probability {format_probability(prediction.probability[target])}</span>"
    )


def _figure(content: bytes, title: str, legend: str = "") -> str:
    return (
        f'<figure><div><img alt="{escape(title)}" src="{_jpeg_url(content)}"></div>'
        f"<figcaption><span>{escape(title)}</span>{legend}</figcaption></figure>"
    )


def _headline(prediction: Prediction) -> str:
    """DEFECT in capitals, with its kinds where the model tells them apart."""
    if not prediction.labels:
        return prediction.verdict
    return "DEFECT" if prediction.verdict == "defect" else f"DEFECT: {prediction.verdict}"


def _css_class(prediction: Prediction) -> str:
    return "defect" if prediction.labels else "normal"


def _jpeg_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{b64encode(jpeg).decode()}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
