"""The words of a claim, and the command that needs no data."""

import pytest

from defects.evaluation.claim_records import RateBound, format_bound, format_confidence, write_sentence


@pytest.mark.parametrize(
    ("upper", "text"),
    [(0.12401, "12.5 %"), (0.0950339, "9.51 %"), (0.05, "5.00 %"), (0.00001, "0.01 %"), (1.0, "100.0 %")],
)
def test_claims_bounds_are_rounded_up(upper, text):
    assert format_bound(upper) == text


def test_claims_a_bound_that_is_unknown_is_said_to_be():
    assert format_bound(None) == "cannot be said"


@pytest.mark.parametrize(
    ("confidence", "text"),
    [(0.95, "95 %"), (0.975, "97.5 %"), (0.9999, "99.99 %"), (0.999999999, "99.9999999 %")],
)
def test_claims_confidence_is_never_rounded_to_certainty(confidence, text):
    assert format_confidence(confidence) == text


def test_claims_without_normal_images_nothing_is_known_of_false_alarms():
    escape = RateBound(1, 20, 20.0, 0.05, 0.216)
    sentence = write_sentence("with these masks", 0.9, escape, None)
    assert sentence.startswith("with these masks, with 90 % confidence, at most 21.6 % of defects")
    assert sentence.endswith("nothing is known of false alarms, since no normal image was scored")


def test_claims_command_tells_the_images_that_are_needed(run_script):
    outcome = run_script("claims.py", "--escape", "0.05", "--false-alarm", "0.01", "--errors", "1")
    assert outcome.code == 0, outcome.stderr
    rows = [line.split() for line in outcome.stdout.splitlines()[-2:]]
    assert rows == [["0", "59", "299"], ["1", "93", "473"]]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("escape", "2"),
        ("escape", "0"),
        ("escape", "nan"),
        ("false-alarm", "2%"),
        ("confidence", "0.5"),
        ("confidence", "95"),
        ("confidence", "1"),
    ],
)
def test_claims_command_refuses_what_is_no_share(fails_with_one_line, option, value):
    message = fails_with_one_line("claims.py", f"--{option}={value}")
    assert f"{option.replace('-', '_')}={value}" in message
