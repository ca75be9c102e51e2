"""When an image was acquired: date and time of day, from the attributes that state them (DICOM PS3.5 6.2, DA, TM and DT)."""

import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

# Old files write 2026.01.01 and 23:59:50. A date and time may end with the difference to UTC.
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
_TIME = re.compile(r"\d{2}(?:\d{2}){0,2}|\d{6}\.\d*")
_ZONE = re.compile(r"[+-]\d{4}$")
HALF_A_DAY = 120000
"""Twelve hours, as HHMMSS."""


def acquired(value_of: Callable[[str], Any]) -> dict[str, float]:
    """Return ``AcquisitionDate`` as YYYYMMDD and ``AcquisitionTime`` as HHMMSS.F; without what is not known.

    Parameters
    ----------
    value_of : callable
        Returns the value of an attribute, or None.
    """
    # A date and time of the image, then of the frame.
    for name in ("AcquisitionDateTime", None, "FrameAcquisitionDateTime"):
        day, time = _split(value_of(name)) if name else (_date_of(value_of), _time(value_of("AcquisitionTime")))
        if time is not None:
            return {"AcquisitionTime": time} | ({"AcquisitionDate": _number(day)} if day else {})
    return {}


def _date_of(value_of: Callable[[str], Any]) -> date | None:
    """Date of AcquisitionTime: as stated, or the one by which it lies next to the time when the content was made."""
    stated, time = _date(value_of("AcquisitionDate")), _time(value_of("AcquisitionTime"))
    made_on, made_at = _date(value_of("ContentDate")), _time(value_of("ContentTime"))
    if stated or time is None or made_on is None or made_at is None:
        return stated
    days = (time - made_at < -HALF_A_DAY) - (time - made_at > HALF_A_DAY)
    return made_on + timedelta(days=days)


def _split(value: Any) -> tuple[date | None, float | None]:
    text = _ZONE.sub("", _first(value))
    return _date(text[:8]), _time(text[8:])


def _date(value: Any) -> date | None:
    found = _DATE.fullmatch(_first(value))
    try:
        return date(*(int(part) for part in found.groups())) if found else None
    except ValueError:
        return None


def _time(value: Any) -> float | None:
    text = _first(value).replace(":", "")
    return float(text.ljust(6, "0")) if _TIME.fullmatch(text) else None


def _first(value: Any) -> str:
    """Return a value, or its first, as text."""
    if value is None or isinstance(value, bytes):
        return ""
    return str(value if isinstance(value, str | int | float) else next(iter(value), "")).strip()


def _number(day: date) -> float:
    return float(day.strftime("%Y%m%d"))
