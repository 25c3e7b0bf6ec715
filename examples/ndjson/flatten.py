"""Web shop orders, one JSON object per line, to order lines, one JSON object per line."""

from typing import Any


def order(event: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The lines of one order; None leaves test orders out. Raises ValueError for an empty order."""
    if event.get("test"):
        return None
    if not event["items"]:
        raise ValueError(f"order {event['id']} has no items")
    return [
        {
            "order": event["id"],
            "line": number,
            "sku": item["sku"],
            "cents": item["cents"] * item.get("quantity", 1),
            "city": event["address"]["city"],
        }
        for number, item in enumerate(event["items"], start=1)
    ]
