"""The local web page: its components, and what happens when one of them is used."""

import os
from pathlib import Path

import gradio as gr

from defects.deploy import page_view as view
from defects.deploy.inspection import Inspected, decode_upload, inspect
from defects.deploy.model import Model
from defects.deploy.similar import Normals
from defects.evaluation.display_scales import AT_THRESHOLD, format_probability
from defects.messages import UserError

HOST = "127.0.0.1"  # the page is for whoever sits at this computer
FILE_LIMIT, DROP_LIMIT = "100mb", 200  # of one image; images at once
SIMILAR = 5  # normal images shown beside each
KEPT = (600, 1800)  # seconds: how often uploads are looked through, and from which age they are deleted
CHOOSE = """element.addEventListener('click', event => {
    const row = event.target.closest('[data-place]');
    if (row) trigger('select', {place: Number(row.dataset.place)});
});"""
ENLARGE = """element.addEventListener('click', event => {
    event.target.closest('.pictures')?.classList.toggle('large');
});"""
# None that would have to be fetched.
FONTS = {"font": ["system-ui", "Segoe UI", "Noto Sans", "sans-serif"], "font_mono": ["monospace"]}
PROGRESS = gr.Progress()


def build_prediction_page(model: Model, normals: Normals | None) -> gr.Blocks:
    """The page of one model; without `normals` no similar ones are shown."""
    desk, title = Desk(model, normals), f"{model.meta.experiment}: surface inspection"
    plain = {"apply_default_css": False, "elem_classes": "inspection"}
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=KEPT, fill_width=True) as page:
        results, chosen = gr.State([]), gr.State(0)
        gr.HTML(view.heading(model), **plain)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                files = gr.File(label="Images", file_count="multiple", height=130, elem_id="drop")
                problems = gr.HTML(**plain)
                sliders = desk.sliders()
                listing = gr.HTML(js_on_load=CHOOSE, elem_id="listing", **plain)
            with gr.Column(scale=3, min_width=360):
                detail = gr.HTML(view.EMPTY, js_on_load=ENLARGE, elem_id="detail", **plain)
                similar = gr.HTML(elem_id="similar", **plain)
        # `files` is emptied, and so ready for the next drop.
        shown = [results, chosen, files, problems, listing, detail, similar]
        files.upload(desk.score, [files, *sliders], shown, show_progress_on=detail, api_visibility="private")
        at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        listing.select(desk.choose, [results, *sliders], [chosen, listing, detail, similar], **at_once)
        for slider in sliders:
            moved = [results, chosen, *sliders]
            slider.change(desk.relabel, moved, [listing, detail], trigger_mode="always_last", **at_once)
    return page


def serve(page: gr.Blocks, port: int, browser: bool) -> None:
    """Show it until Ctrl-C, on this computer alone. Raises UserError if the port is taken."""
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


class Desk:
    """What the components call: each method returns the new values of those it is wired to.

    `values` are those of the sliders, a defect score for each of the model's targets. Gradio fills in
    `progress` and `event` by their types.
    """

    def __init__(self, model: Model, normals: Normals | None):
        self.model, self.meta, self.normals = model, model.meta, normals

    def sliders(self) -> list[gr.Slider]:
        """One for each target; those of classes are folded away below that of any defect."""
        *classes, overall = self.meta.targets
        if not classes:
            return [self._slider(overall, "Threshold")]
        last = self._slider(overall, "Threshold of any defect")
        with gr.Accordion("Thresholds of the classes", open=False):
            return [*(self._slider(target, target) for target in classes), last]

    def score(self, files: list[str], progress: gr.Progress = PROGRESS, *values: float) -> tuple:
        """A drop, and the worst of its images to begin with."""
        paths = list(dict.fromkeys(Path(file) for file in files))
        done = []
        for one in inspect(self.model, paths[:DROP_LIMIT]):
            done.append(one)
            progress((len(done), len(paths)), desc="scoring", unit="images")
        read = [one for one in done if not one.found.error]
        # By the model's own thresholds: by those of the sliders the list would jump while they are moved.
        results = sorted(read, key=lambda one: -max(one.found.defect_score.values()))
        problems = [one.found.error for one in done if one.found.error]
        if len(paths) > DROP_LIMIT:
            problems.append(f"{len(paths) - DROP_LIMIT} more images left out: src/predict.py scores folders")
        return results, 0, None, view.problems(problems), *self._choice(results, 0, values)

    def choose(self, results: list[Inspected], event: gr.EventData, *values: float) -> tuple:
        return event.place, *self._choice(results, event.place, values)

    def relabel(self, results: list[Inspected], chosen: int, *values: float) -> tuple[str, str]:
        """List and detail by other thresholds: the model does not run again."""
        thresholds = self._name_thresholds(values)
        detail = view.detail(results[chosen], thresholds, self.meta) if results else view.EMPTY
        return view.listing(results, thresholds, chosen, self.meta), detail

    def _choice(self, results: list[Inspected], chosen: int, values: tuple) -> tuple[str, str, str]:
        similar = ""
        if results and self.normals is not None:
            names = self.normals.most_like(decode_upload(results[chosen].picture), SIMILAR)
            similar = view.neighbours(names, self.normals)
        return *self.relabel(results, chosen, *values), similar

    def _slider(self, target: str, label: str) -> gr.Slider:
        own = format_probability(self.meta.threshold[target])
        note = f"{AT_THRESHOLD:g}: the model's own, a probability of {own}"
        return gr.Slider(0, 100, AT_THRESHOLD, step=0.1, label=label, info=note, buttons=["reset"])

    def _name_thresholds(self, values: tuple) -> dict[str, float]:
        """Of each target; the model's own where the field beside its slider is empty."""
        return {
            target: AT_THRESHOLD if value is None else value
            for target, value in zip(self.meta.targets, values, strict=True)
        }
