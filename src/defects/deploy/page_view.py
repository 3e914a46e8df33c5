"""The page's parts as HTML; pictures are part of it, so that none has to be stored to be shown."""

from base64 import b64encode
from html import escape

from defects.deploy.inspection import Inspected, draw_heat_map, jpeg
from defects.deploy.model import Meta, Model
from defects.deploy.prediction import Prediction, relabel
from defects.deploy.regions import Region
from defects.deploy.similar import Normals
from defects.deploy.writers import label
from defects.evaluation.display_scales import format_defect_score, format_probability

EMPTY = '<p class="nothing">Drop images to have them scored. They stay on this computer.</p>'
LEGEND = '<span class="scale"><i></i><span>normal</span><span>threshold</span><span>above</span></span>'


def heading(model: Model) -> str:
    facts = f"{model.meta.experiment}, fold {model.meta.fold} · {model.meta.detector} · {model.path.name}"
    return f"<h1>Surface inspection</h1><p>{escape(facts)}</p>"


def problems(lines: list[str]) -> str:
    """What could not be done, a line each."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="problems" role="alert">{items}</ul>' if lines else ""


def listing(results: list[Inspected], thresholds: dict[str, float], chosen: int, meta: Meta) -> str:
    """The images to choose from: a button each, `data-place` its position."""
    if not results:
        return ""
    found = [relabel(one.found, thresholds, meta) for one in results]
    defects = sum(bool(each.labels) for each in found)
    counts = f"{_count(len(found), 'image')}: {_count(defects, 'defect')}, {len(found) - defects} normal"
    rows = "".join(
        _entry(place, one.icon, each, thresholds, place == chosen)
        for place, (one, each) in enumerate(zip(results, found, strict=True))
    )
    return f'<p class="counts">{counts}</p><div class="entries">{rows}</div>'


def detail(one: Inspected, thresholds: dict[str, float], meta: Meta) -> str:
    """Verdict, defect scores beside their thresholds, the image and its heat map."""
    found = relabel(one.found, thresholds, meta)
    pictures = _figure(one.picture, "Image", "")
    if found.maps is not None:
        heat = draw_heat_map(one.picture, found, meta.map)
        pictures += _figure(heat, f"Heat map, {_boxes(found.regions)}", LEGEND)
    values = "".join(_value(found, target, threshold) for target, threshold in thresholds.items())
    return (
        f'<div class="verdict {_kind(found)}" role="status"><b>{escape(_verdict(found))}</b>'
        f"<span>{escape(found.path.name)}</span></div>"
        f'<div class="values">{values}</div>'
        f'<div class="pictures">{pictures}</div>'
    )


def neighbours(names: list[str], normals: Normals) -> str:
    """The normal images of these names, in this order."""
    pictures = "".join(
        f'<figure title="{escape(name)}"><img alt="" src="{_source(jpeg(normals.images[name]))}">'
        f"<figcaption>{escape(name.rpartition('/')[2])}</figcaption></figure>"
        for name in names
    )
    title = f"Most similar of {_count(len(normals.names), 'normal image')}"
    return f'<h2>{title}</h2><div class="normals">{pictures}</div>'


def _entry(place: int, icon: bytes, found: Prediction, thresholds: dict[str, float], is_chosen: bool) -> str:
    # Of several targets the surest one present or, failing that, the likeliest.
    target = max(found.labels or found.defect_score, key=found.defect_score.get)
    score = format_defect_score(found.defect_score[target], thresholds[target])
    pressed = "true" if is_chosen else "false"
    return (
        f'<button type="button" class="{_kind(found)}" data-place="{place}" aria-pressed="{pressed}">'
        f'<img alt="" src="{_source(icon)}"><span>{escape(found.path.name)}</span>'
        f"<b>{escape(_verdict(found))}</b><em>{score}</em></button>"
    )


def _value(found: Prediction, target: str, threshold: float) -> str:
    """The defect score as a bar with a mark at the threshold, and in figures: five cells of a grid."""
    score, kind = found.defect_score[target], "defect" if target in found.labels else "normal"
    return (
        f'<span>{escape(target)}</span><div class="bar {kind}"><i style="width:{score:.1f}%"></i>'
        f'<u style="left:{threshold:.1f}%"></u></div>'
        f"<span>score <b>{format_defect_score(score, threshold)}</b></span>"
        f"<span>threshold {threshold:.1f}</span>"
        f"<span>probability {format_probability(found.probability[target])}</span>"
    )


def _boxes(regions: list[Region]) -> str:
    kinds = ", ".join(dict.fromkeys(region.kind for region in regions if region.kind != "defect"))
    return _count(len(regions), "box", "boxes") + (f": {kinds}" if kinds else "")


def _figure(content: bytes, title: str, note: str) -> str:
    return (
        f'<figure><div><img alt="{escape(title)}" src="{_source(content)}"></div>'
        f"<figcaption><span>{escape(title)}</span>{note}</figcaption></figure>"
    )


def _verdict(found: Prediction) -> str:
    """DEFECT in capitals, with its kinds where the model tells them apart."""
    kinds = label(found)
    if not found.labels:
        return kinds
    return "DEFECT" if kinds == "defect" else f"DEFECT: {kinds}"


def _kind(found: Prediction) -> str:
    return "defect" if found.labels else "normal"


def _source(content: bytes) -> str:
    return f"data:image/jpeg;base64,{b64encode(content).decode()}"


def _count(number: int, noun: str, several: str = "") -> str:
    return f"{number} {noun if number == 1 else several or f'{noun}s'}"
