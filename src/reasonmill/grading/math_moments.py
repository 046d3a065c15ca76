"""Times of day and dates: "4:30 p.m." is no ratio with a unit, and "June 20" is not the number 20."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from reasonmill.grading.math_words import NEGATIONS, doubts, without_marks

_NOON, _HALF_DAY, _DAY = 12 * 3600, 12 * 3600, 24 * 3600
# A text without any of this says no time and no date.
_MAYBE = re.compile(
    r"\d\s*:\s*\d|\d{4}-\d\d-\d|\d[\s⟦]*[ap]\.?\s?m\b|\bnoon\b|\bmidnight\b|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"(?<![\w:.\-/])(?:(?P<hour>\d{1,2})(?:\s*:\s*(?P<minute>\d\d)(?:\s*:\s*(?P<second>\d\d))?)?\s*)?"
    r"(?P<half>[ap]\.?\s?m\b\.?|noon\b|midnight\b|(?:in|at) (?:the )?(?:morning|afternoon|evening|night)\b)?(?![\w:/])",
    re.IGNORECASE,
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DAY_OF_MONTH = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?(?!\d)"
_YEAR = r"(?:,?\s*(?:of\s+)?(?P<year>\d{4}))?(?!\d)"
_DATES = tuple(
    re.compile(rf"(?<![\w.]){order}", re.IGNORECASE)
    for order in (
        rf"{_MONTH}\s*{_DAY_OF_MONTH}{_YEAR}",
        rf"{_DAY_OF_MONTH}\s*(?:of\s+)?{_MONTH}{_YEAR}",
        rf"(?P<day>){_MONTH},?\s*(?P<year>\d{{4}})(?!\d)",
    )
)
_ISO_DATE = re.compile(r"(?P<year>\d{4})-(?P<number>0[1-9]|1[0-2])-(?P<day>[0-3]\d)")
_WEEKDAY = re.compile(r"^(?:on\s+)?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day\s*,?\s*)?(?:the\s+)?", re.IGNORECASE)
# Behind the digits these say that they are how long something takes.
_DURATION = re.compile(r"\b(?:hours?|minutes?|seconds?|days?|hrs?|mins?)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Time:
    """A time of day.

    Attributes:
        seconds: since midnight; where nothing tells the halves of the day apart, of the earlier half.
        half: how its half of the day is known: "said", by "24 hours", or "" where it is not.
    """

    seconds: int
    half: Literal["said", "24 hours", ""]

    def same(self, answer: Time) -> bool | None:
        """Whether an answer is this time, and None where that is not clear. Like a unit, the half of the day may be
        left out by one of the two."""
        if self.half and answer.half:
            return self.seconds == answer.seconds
        if (self.seconds - answer.seconds) % _HALF_DAY:
            return False
        return None if "24 hours" in (self.half, answer.half) else True


@dataclass(frozen=True, slots=True)
class Date:
    """A date; the day or the year may be left out, as 0."""

    month: int
    day: int
    year: int

    def same(self, answer: Date) -> bool:
        """Whether an answer is this date."""
        is_year = self.year == answer.year or 0 in (self.year, answer.year)
        return is_year and (self.month, self.day) == (answer.month, answer.day)


def moment_of(reference: str) -> Time | Date | None:
    """The time or date that a reference is, all of it; digits with a colon alone may also be a ratio."""
    if "\\" in reference or not _MAYBE.search(reference):
        return None
    plain = without_marks(reference).strip(" .,")
    date = _WEEKDAY.sub("", plain)
    for pattern in (*_DATES, _ISO_DATE):
        match = pattern.fullmatch(date)
        if match:
            return _date(match)
    match = _TIME.fullmatch(plain)
    return _time(match) if match else None


def moment_in(answer: str) -> Time | Date | None:
    """The one time or date that an answer names; None where it names none or several, or denies or doubts it."""
    if not _MAYBE.search(answer):
        return None
    plain = without_marks(answer)
    if NEGATIONS.search(plain) or doubts(plain) or _DURATION.search(plain):
        return None
    dates: list[re.Match[str]] = next(
        filter(None, (list(pattern.finditer(plain)) for pattern in (*_DATES, _ISO_DATE))), []
    )
    found = dates or [match for match in _TIME.finditer(plain) if match["minute"] or match["half"]]
    if not found:
        return None
    rest = plain[: found[0].start()] + plain[found[0].end() :]
    if len(found) > 1 or re.search(r"\d", rest) or re.search(r"\b(?:or|to|before|after|until|about|around)\b", rest):
        return None
    return _date(found[0]) if dates else _time(found[0])


def _time(match: re.Match[str]) -> Time | None:
    half = (match["half"] or "").lower()
    if match["hour"] is None:
        return Time(_NOON if half == "noon" else 0, "said") if half in ("noon", "midnight") else None
    hour, minute, second = (int(match[name] or 0) for name in ("hour", "minute", "second"))
    if not (match["minute"] or half) or hour > 24 or minute > 59 or second > 59:
        return None
    seconds = (3600 * hour + 60 * minute + second) % _DAY
    if hour > 12 or hour == 0:
        return None if half[:1] == "a" else Time(seconds, "24 hours")
    if not half:
        return Time(seconds % _HALF_DAY, "")
    is_late = half[0] == "p" or half == "noon" or half.endswith(("afternoon", "evening"))
    is_late |= half.endswith("night") and half != "midnight" and 5 <= hour < 12
    return Time(seconds % _HALF_DAY + _HALF_DAY * is_late, "said")


def _date(match: re.Match[str]) -> Date | None:
    day, year = (int(match[name] or 0) for name in ("day", "year"))
    named = match.groupdict().get("month")
    month = _MONTHS.index(named[:3].lower()) + 1 if named else int(match["number"])
    return Date(month, day, year) if day <= 31 else None
