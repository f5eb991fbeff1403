"""What a worker of `mstar targets` says about a bundle, and the sums a run keeps: numbers only."""

from dataclasses import dataclass, fields


@dataclass(slots=True, kw_only=True)
class TargetsTally:
    """Counts of one bundle, or of a whole run."""

    done: int = 0  # cases written
    present: int = 0  # cases found done on arrival
    elsewhere: int = 0  # cases another run holds: to be looked at again
    failed: int = 0  # cases recorded in the failure ledger
    slides: int = 0  # slides of the cases written
    windows: int = 0
    patches: int = 0  # patches that got a target
    read_wait_s: float = 0.0  # the teacher waited for features
    teacher_s: float = 0.0
    wall_s: float = 0.0

    def add(self, other: "TargetsTally") -> None:
        """Add another tally to this one."""
        for item in fields(TargetsTally):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    @property
    def settled(self) -> int:
        """Cases that need not be looked at again in this run."""
        return self.done + self.present + self.failed
