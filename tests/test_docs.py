"""README and docs: links and pictures resolve, commands exist with their options, pages stay short."""

import argparse
import importlib.util
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import yaml

from defects.config_schema import ROOT

READMES = [ROOT / "README.md", ROOT / "README.ko.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md"))]
README_LINES, PAGE_LINES = 180, 200
PICTURE_BYTES = 150_000
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A script and what follows, up to the end of the line, of inline code or of a table's cell, or to a comment.
COMMAND = re.compile(r"(?<![\w/])((?:src|benchmarks|docs)/\w+\.py)([^\n`#|;]*)")


class Parsed(Exception):
    """Raised in place of parsing, with the parser of the script."""


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", read(path)), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


def test_docs_the_detector_example_judges_the_region_of_interest_alone():
    """It is run as it stands on the page."""
    blocks = re.findall(r"^```python\n(.*?)^```", read(ROOT / "docs/developing.md"), re.MULTILINE | re.DOTALL)
    module = {}
    exec(next(block for block in blocks if "class Grey" in block), module)
    detector = module["DETECTOR"](0.05, None, scale=2.0)
    images = torch.full((2, 4, 8, 8), 0.5)
    images[1, :3, :, :4] = 0.75
    images[:, 3, :, :4] = 1
    images[:, 3, :, 4:] = 0
    detector.prepare([{"image": images}])
    assert detector.normal.item() == pytest.approx(0.5625)
    expected = torch.tensor([[0.125], [0.375]])
    torch.testing.assert_close(detector(images)[0], expected)
    images[:, :3, :, 4:] = 1.0
    torch.testing.assert_close(detector(images)[0], expected)
    torch.testing.assert_close(detector(images[1:, :3])[0], torch.tensor([[0.625]]))


@cache
def options_of(script: str) -> set[str]:
    """The options that a script's parser knows; its main is left where it would parse."""
    parser = parser_of(ROOT / script)
    return {option for action in parser._actions for option in action.option_strings}


def parser_of(path: Path) -> argparse.ArgumentParser:
    """The parser that the script's main makes."""

    def stop(parser, *arguments, **options):
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with pytest.raises(Parsed) as stopped:
            module.main()
    return stopped.value.args[0]


def commands(path: Path) -> list[tuple[str, list[str]]]:
    """Each script that a page runs, with the options behind it; inline code may go over a line's end."""
    found = []
    text = re.sub(r"`[^`\n]*\n[^`\n]*`", lambda code: code[0].replace("\n", " "), read(path))
    for line in text.splitlines():
        for script, rest in COMMAND.findall(line):
            words = shlex.split(rest.replace("'", "").replace('"', ""))
            found.append((script, [word.split("=")[0] for word in words if word.startswith("--")]))
    return found


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_page_links_resolve(path):
    broken = []
    for target in LINK.findall(CODE_BLOCK.sub("", read(path))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        linked = path.parent / name if name else path
        if not linked.is_file() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_page_is_short(path):
    assert len(read(path).splitlines()) <= (README_LINES if path in READMES else PAGE_LINES)


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > PICTURE_BYTES] == []


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_page_commands_exist(path):
    wrong = []
    for script, given in commands(path):
        if not (ROOT / script).is_file():
            wrong.append(script)
        else:
            wrong += [f"{script} {option}" for option in given if option not in options_of(script)]
    assert wrong == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "kubernetes").glob("*.yaml")), ids=page_id)
def test_manifest_commands_exist(path):
    (words,) = commands_of_manifest(yaml.safe_load(read(path))["spec"])
    program = words[1].removeprefix("/app/")
    given = {word for word in words if word.startswith("--")}
    assert words[0] == "python" and given <= options_of(program)


def commands_of_manifest(spec: dict) -> list[list[str]]:
    if "entrypoint" in spec:
        return [spec["entrypoint"].split()]
    return [container["command"] for container in spec["template"]["spec"]["containers"]]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_page_configurations_exist(path):
    text = read(path)
    named = re.findall(r"(?<![\w/])configs/[\w/]+\.yaml", text)
    named += [f"configs/data/{name}.yaml" for name in re.findall(r"--data ([a-z_]+)\b", text)]
    named += [f"configs/models/{name}.yaml" for name in re.findall(r"--model\s([a-z_0-9]+)\b", text)]
    examples = {"configs/models/grey.yaml", "configs/data/valves.yaml"}  # docs/developing.md writes them
    assert [name for name in named if not (ROOT / name).is_file() and name not in examples] == []


def test_readme_table_names_every_script():
    scripts = {path.name for path in (ROOT / "src").glob("*.py")}
    assert scripts == set(re.findall(r"^\| `python src/(\w+\.py)", read(READMES[0]), re.MULTILINE))
