"""The answer key of the test images as people save it, and the result against it."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import texture, write_png

from defects.evaluation.outcome import load_answers, outcome
from defects.messages import UserError
from defects.stages import ensure_images

EXPECTED = [("test_0.png", 1), ("test_1.png", 0), ("test_2.png", 1)]


@pytest.fixture
def answers(make_dataset, make_config, tmp_path) -> Callable[[str], list[tuple]]:
    """answers(text) -> image_id and label, sorted, of a key with this content for three test images."""
    root = make_dataset(defects=2, normals=2, tests=3)

    def read(text: str) -> list[tuple]:
        (tmp_path / "key.csv").write_text(text, encoding="utf-8")
        config = make_config(root, f"data.answers={tmp_path / 'key.csv'}")
        table = load_answers(config, ensure_images(config))
        return sorted(table[["image_id", "label"]].itertuples(index=False, name=None))

    return read


@pytest.mark.parametrize(
    "text",
    [
        "ImageId,answer\ntest_0.png,1\ntest_1.png,0\ntest_2.png,1\n",
        "\ufeffanswer;imageid;Usage\n1.0;test_0;Public\n0;test_1;Private\n1;test_2;Public\n",
        "image_id,label\ntest_2.png,1\ntest_1.png,0\ntest_0.png,1\ntest_0.png,1\n",
    ],
)
def test_outcome_answers_in_all_spellings(answers, text):
    assert answers(text) == EXPECTED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ImageId,answer\ntest_0.png,2\n", "row 2: the answer '2' is neither 0 nor 1"),
        ("ImageId,answer\ntest_0.png,\n", "row 2: the answer '' is neither"),
        ("ImageId,answer\ntest_0.png,1\ntest_0.png,0\n", "several answers for test_0.png"),
        ("name,answer\ntest_0.png,1\n", "has the columns name, answer"),
    ],
)
def test_outcome_answers_that_say_nothing(answers, text, expected):
    with pytest.raises(UserError) as caught:
        answers(text)
    assert expected in str(caught.value)


def _severstal(root: Path) -> list[str]:
    for i in range(2):
        write_png(root / f"train_images/{i}.png", texture(i))
        write_png(root / f"test_images/t{i}.png", texture(9 + i))
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n0.png,1,1 5\n")
    return ["data.source=severstal", "data.classes=[1,2]", "data.sample_submission=null"]


def test_outcome_a_key_of_masks_tells_whether_there_is_any(tmp_path, make_config):
    options = _severstal(tmp_path / "in")
    (tmp_path / "key.csv").write_text("ImageId,ClassId,EncodedPixels\nt0,1.0,3 4\nt0,1,9 1\nt1,-1,\n")
    config = make_config(tmp_path / "in", f"data.answers={tmp_path / 'key.csv'}", *options)
    table = load_answers(config, ensure_images(config))
    assert isinstance(table, pd.DataFrame)
    assert dict(zip(table["image_id"], table["label"], strict=True)) == {"t0.png": 1, "t1.png": 0}


def test_outcome_an_outcome_without_training_defects_has_no_macro_f1_at_their_share():
    table = pd.DataFrame({"label": [0, 1], "answer": [0, 1], "score": [0.1, 0.9]})
    assert outcome(table, 0.0)["macro_f1_at_training_share"] is None
