"""Incidents: damage that was met and what was done about it, reported to the user and recorded in the ledger."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Incident:
    """One damaged or missing file.

    Args:
        file: its path below the home, or of the object's directory where all of it is missing.
        digest: what the file or object should have been; empty where nothing says that.
        what: what is wrong with it, to follow the file's name.
        done: what was done about it, to follow a semicolon.
        at_s: when it was met, in seconds since the epoch.
    """

    file: str
    digest: str
    what: str
    done: str
    at_s: float = field(default_factory=time.time)

    def __str__(self) -> str:
        return f"{self.file} {self.what}; {self.done}"


class Incidents:
    """Passes incidents on to the ledger and to the user, as soon as there is one to pass them to."""

    def __init__(self) -> None:
        self._record: Callable[[Incident], None] | None = None
        self._tell: Callable[[str], None] | None = None
        self._unrecorded: list[Incident] = []
        self._unreported: list[Incident] = []

    def add(self, incident: Incident) -> None:
        """Records and reports an incident, now or when that becomes possible."""
        self._unrecorded.append(incident)
        self._unreported.append(incident)
        self._pass_on()

    def record(self, record: Callable[[Incident], None]) -> None:
        """From now on incidents are recorded with this function; earlier ones are recorded now."""
        self._record = record
        self._pass_on()

    def tell(self, tell: Callable[[str], None]) -> None:
        """From now on incidents are reported with this function; earlier ones are reported now."""
        self._tell = tell
        self._pass_on()

    def _pass_on(self) -> None:
        while self._record is not None and self._unrecorded:
            self._record(self._unrecorded[0])
            del self._unrecorded[0]
        while self._tell is not None and self._unreported:
            self._tell(str(self._unreported.pop(0)))
