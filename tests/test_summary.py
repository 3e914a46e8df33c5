"""The JSON beside a submission: what is read back from it."""

import json

import pytest

from defects.config_schema import EnsembleConfig, ThresholdConfig
from defects.messages import UserError
from defects.submission.summary import read_summary

SETTINGS = {"threshold": ThresholdConfig().model_dump(), "ensemble": EnsembleConfig().model_dump()}
WHOLE = {"runs": {"member": "output/member"}, "settings": SETTINGS}


def test_read_summary_takes_what_is_whole(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(WHOLE))
    assert read_summary(tmp_path / "a.csv") == WHOLE


@pytest.mark.parametrize(
    "change",
    [
        {"runs": {}},
        {"runs": {"member": 3}},
        {"settings": {}},
        {"settings": {"threshold": 0.5, "ensemble": {}}},
        {"settings": SETTINGS | {"threshold": {"rule": "no such rule"}}},
    ],
)
def test_read_summary_refuses_what_is_not_whole(tmp_path, change):
    (tmp_path / "a.json").write_text(json.dumps(WHOLE | change))
    with pytest.raises(UserError, match=r"a\.json is not whole"):
        read_summary(tmp_path / "a.csv")
