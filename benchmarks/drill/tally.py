"""What a drill counts, and the table it ends with."""

from dataclasses import dataclass, field

HEADER = ("drill", "of", "tries", "faults", "losses")


@dataclass
class Tally:
    """Faults ended otherwise than they should; losses left a file missing, broken or lying about."""

    drill: str
    subject: str
    tries: int = 0
    faults: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    note: str = ""

    def add(self, faults: list[str], losses: list[str]) -> None:
        """One more try; what went wrong in it is printed at once."""
        self.tries += 1
        self.faults += faults
        self.losses += losses
        for text in (*faults, *losses):
            print(f"! {self.drill} {self.subject}: {text}", flush=True)


def print_table(tallies: list[Tally]) -> None:
    rows = [(each.drill, each.subject, each.tries, len(each.faults), len(each.losses)) for each in tallies]
    for row, note in zip([HEADER, *rows], ["", *(each.note for each in tallies)], strict=True):
        drill, subject, *counts = row
        print(f"{drill:10}{subject:34}" + "".join(f"{count:>9}" for count in counts) + f"  {note}".rstrip())
    tries, faults, losses = (sum(row[place] for row in rows) for place in (2, 3, 4))
    print(f"{tries} tries, {faults} faults, {losses} losses")
