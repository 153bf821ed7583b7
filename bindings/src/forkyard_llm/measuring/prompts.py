"""Texts that are measured with: what speculative decoding gains depends on what is written."""

from __future__ import annotations

__all__ = ["CONFIRMING", "PROMPTS"]

_FUNCTION = '''\
def area_of_triangle(base: float, height: float) -> float:
    """Half of base times height."""
    if base < 0 or height < 0:
        raise ValueError("lengths are not negative")
    return base * height / 2


def area_of_rectangle(width: float, height: float) -> float:
    """Width times height."""
    if width < 0 or height < 0:
        raise ValueError("lengths are not negative")
    return width * height


def area_of_circle(radius: float) -> float:
'''
_ROWS = "\n".join(
    f'{{"id": {number}, "name": "sensor-{number:02d}", "unit": "kPa", "value": {90 + 3 * number}}}'
    for number in range(1, 9)
)
_STORY = (
    "The lighthouse keeper counted the ships every evening. On calm days there were nine or ten, on stormy days none, "
    "and he wrote the number into a book that nobody read. One autumn a girl from the village asked him why he did it. "
    "He thought about the question for a long time. Then he opened the book at its first page and said:"
)
_LETTER = (
    "Dear neighbours, the water in our street will be turned off on Thursday from eight to twelve, because the pipe "
    "below the crossing is renewed. Please fill a bucket for the morning, and do not start the washing machine before "
    "one o'clock. The work is done by the town, costs you nothing, and the road stays open for bicycles. After that"
)
_STEPS = (
    "How to change the tyre of a bicycle.\n1. Turn the bicycle upside down.\n"
    "2. Open the brake and take the wheel out.\n3. Let the air out, and lift the tyre over the rim with two levers.\n4."
)
_QUERY = (
    "-- Tables: customers(id, name, town), orders(id, customer_id, day, total)\n"
    "-- The three towns whose customers spent most in the year 2024, with the sum:\nSELECT"
)

PROMPTS = {
    "warm-up": "The sun rises in the east and",
    "code": _FUNCTION,
    "rows": _ROWS + "\n",
    "story": _STORY,
}
"""By name: code that resembles what stands above it, rows of data, and prose."""

CONFIRMING = {"letter": _LETTER, "steps": _STEPS, "query": _QUERY}
"""Others, for what was found with the first to be confirmed on."""
