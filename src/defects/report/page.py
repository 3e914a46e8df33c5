"""One HTML page that holds its pictures: it opens without a network and without scripts."""

from base64 import b64encode
from html import escape

import pandas as pd

STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", sans-serif; color: #222; background: #f4f5f7; }
body { margin: 0; }
main { max-width: 1320px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 26px; margin: 8px 0 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 12px; }
p { margin: 4px 0 12px; max-width: 95ch; }
.sub, .figures span { color: #666; }
section, .figures div { background: #fff; border: 1px solid #dfe2e6; border-radius: 8px; }
section { padding: 18px 20px; margin-top: 18px; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 18px; }
.figures div { padding: 10px 16px; flex: 1 1 150px; }
.figures b { display: block; font-size: 24px; font-weight: 600; line-height: 1.3; }
.figures span { display: block; font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 6px 12px; border-bottom: 1px solid #e7e9ec; text-align: right; white-space: nowrap; }
th { color: #555; font-weight: 600; }
tbody th, thead th:first-child { text-align: left; color: #222; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
"""
FRAME = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body><main><h1>{title}</h1><p class="sub">{subtitle}</p>
{parts}
</main></body></html>
"""


def page(title: str, subtitle: str, parts: list[str]) -> str:
    """The whole document; `parts` are what the other functions return."""
    return FRAME.format(title=escape(title), subtitle=escape(subtitle), style=STYLE, parts="\n".join(parts))


def section(title: str, text: str, *content: str) -> str:
    """A titled box; `text` is escaped, `content` is HTML."""
    note = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(title)}</h2>{note}{''.join(content)}</section>"


def picture(png: bytes, text: str) -> str:
    """`text` is told to those who cannot see the picture."""
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{b64encode(png).decode()}">'


def key_figures(figures: list[tuple[str, str, str]]) -> str:
    """Boxes of (name, value, what else is to be said)."""
    boxes = (
        f"<div><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>"
        for name, value, note in figures
    )
    return f'<div class="figures">{"".join(boxes)}</div>'


def table(values: pd.DataFrame) -> str:
    """`values` are texts; the index stands in bold to the left."""
    named = values.rename_axis(index=None, columns=values.index.name)  # one line of headings
    return f'<div class="wide">{named.to_html(border=0, escape=True)}</div>'


def shown(value: float | None, form: str = ".3f") -> str:
    """The number in `form`, a dash where there is none."""
    return "–" if value is None or pd.isna(value) else format(value, form)
