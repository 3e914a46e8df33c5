"""How many images support a claim about escapes and false alarms; no data are needed.

Count images of different parts that were used neither for training nor for the threshold. Of each claim the
bound is one-sided and exact (Clopper and Pearson).
"""

import argparse

from defects import cli
from defects.config_schema import ClaimsConfig
from defects.evaluation.bounds import tabulate_needed
from defects.evaluation.claim_records import format_confidence
from defects.settings import Written, validate

OPTIONS = {
    "escape": "largest share of defects that may pass",
    "false_alarm": "largest share of normal parts that may be rejected",
    "confidence": "of each claim by itself, above 0.5 and below 1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    defaults = ClaimsConfig()
    for name, text in OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, default=str(getattr(defaults, name)), metavar="SHARE", help=text)
    parser.add_argument("--errors", type=cli.positive, default=5, help="rows for up to so many errors")
    arguments = parser.parse_args()
    values = {name: Written(getattr(arguments, name)) for name in OPTIONS}
    settings = validate(ClaimsConfig, values, "src/claims.py")
    print(f"independent images needed, with {format_confidence(settings.confidence)} confidence")
    print(f"{'decided wrongly':>16}{'defects, for at most':>24}{'normal images, for at most':>30}")
    escape = f"{100 * settings.escape:.6g} % escapes"
    false_alarm = f"{100 * settings.false_alarm:.6g} % false alarms"
    print(f"{'':16}{escape:>24}{false_alarm:>30}")
    rows = tabulate_needed(arguments.errors, settings.escape, settings.false_alarm, settings.confidence)
    for row in rows:
        print(f"{row.errors:>16,}{row.defects:>24,}{row.normal:>30,}")


if __name__ == "__main__":
    cli.run(main)
