"""Two steps over sales: clean the rows, then convert amounts to euros."""

from decimal import Decimal

EUROS_PER = {"EUR": Decimal(1), "CHF": Decimal("1.07"), "PLN": Decimal("0.236")}


def clean(row: dict[str, str]) -> dict[str, str] | None:
    """Tidy one row; None leaves cancelled sales out. Raises ValueError for an unknown currency."""
    if row["state"].strip().lower() == "cancelled":
        return None
    currency = row["currency"].strip().upper()
    if currency not in EUROS_PER:
        raise ValueError(f"unknown currency {currency!r}")
    return {
        "sale": row["sale"],
        "amount": f"{Decimal(row['amount'].replace(',', '.')):.2f}",
        "currency": currency,
    }


def convert(row: dict[str, str]) -> dict[str, str]:
    """The cleaned sale with its amount in euros."""
    euros = Decimal(row["amount"]) * EUROS_PER[row["currency"]]
    return {**row, "eur": f"{euros:.2f}"}
