"""Numbers as a reader sees them."""


def shown(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimal places; "-" where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
