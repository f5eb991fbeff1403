"""What a worker says about a bundle, and the sums that a job keeps: numbers only."""

from dataclasses import dataclass, fields


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of one bundle, or of a whole run."""

    done: int = 0  # slides written
    present: int = 0  # slides found done on arrival
    elsewhere: int = 0  # slides another run holds, or whose reader died: to be looked at again
    failed: int = 0  # slides recorded in the failure ledger
    skipped: int = 0  # slides left out as the caller asked
    patches: int = 0
    unreadable: int = 0  # patches left out
    batches: int = 0
    encode_wait_s: float = 0.0  # the packer waited for the encoder
    input_wait_s: float = 0.0  # the packer waited for pixels
    wall_s: float = 0.0
    warned: int = 0  # slides whose resolution is doubtful
    slide_bytes: int = 0  # size of the slides opened, where it is known
    bytes_fetched: float = 0.0  # from object storage, by the worker's node cache

    def add(self, other: "Tally") -> None:
        """Add another tally to this one."""
        for item in fields(Tally):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def to_row(self) -> dict[str, float]:
        """Column name → number, as it travels through Ray Data."""
        return {item.name: getattr(self, item.name) for item in fields(Tally)}


def tally_from(row: dict[str, float]) -> Tally:
    """The tally of one row; other columns are ignored."""
    tally = Tally()
    for item in fields(Tally):
        kind = type(getattr(tally, item.name))
        setattr(tally, item.name, kind(row[item.name]))
    return tally
