"""How fast work goes, and how long the rest of it will take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Work done in a time; the unit of work is the caller's (FLOPs, tokens)."""

    done: float
    seconds: float

    @property
    def per_second(self) -> float | None:
        return self.done / self.seconds if self.done > 0 and self.seconds > 0 else None

    def seconds_for(self, left: float) -> float | None:
        """Seconds that ``left`` more work takes; None if nothing has been done yet."""
        speed = self.per_second
        return max(0.0, left) / speed if speed else None


def duration(seconds: float) -> str:
    """An estimate for people: ``82 s``, ``4.4 min``, ``12 h``, ``5.0 days``."""
    sizes = {"s": 1, "min": 60, "h": 3600, "days": 86_400}
    unit = next((unit for unit, size in sizes.items() if seconds < 100 * size), "days")
    number = seconds / sizes[unit]
    return f"{number:,.{int(number < 10 and unit != 's')}f} {unit}"


def clock_time(seconds: float | None) -> str:
    """``75`` as ``1:15``; ``?`` if unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
