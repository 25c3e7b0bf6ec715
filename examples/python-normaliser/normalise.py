"""Clean customer records: names, e-mails, phones, dates, amounts.

`record` is called once per record with a dict of strings and returns the cleaned dict. Raising
an exception sets the record aside in the job's quarantine, with the exception's text as reason.
"""

import re
from datetime import date

EMAIL = re.compile(r"[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}")
SPACES = re.compile(r"\s+")
NOT_DIGITS = re.compile(r"\D+")
MONTHS = {
    "jan": 1, "feb": 2, "mar": 3,
    "apr": 4, "may": 5, "jun": 6,
    "jul": 7, "aug": 8, "sep": 9,
    "oct": 10, "nov": 11, "dec": 12,
}  # fmt: skip


def record(row: dict[str, str]) -> dict[str, str]:
    """One customer, cleaned. Raises ValueError on what cannot be understood."""
    email = row["email"].strip().lower()
    if email and not EMAIL.fullmatch(email):
        raise ValueError(f"not an e-mail address: {email!r}")
    return {
        "id": row["id"],
        "name": SPACES.sub(" ", row["name"]).strip().title(),
        "email": email,
        "phone": phone(row["phone"]),
        "born": born(row["born"]).isoformat(),
        "balance": f"{amount(row['balance']):.2f}",
        "note": SPACES.sub(" ", row["note"]).strip(),
    }


def phone(text: str) -> str:
    """Digits with a country code: "0171 23-45" becomes "+491712345"."""
    digits = NOT_DIGITS.sub("", text)
    if not digits:
        return ""
    if text.lstrip().startswith("+") or digits.startswith("00"):
        return "+" + digits.removeprefix("00")
    return "+49" + digits.removeprefix("0")


def born(text: str) -> date:
    """A date written as 1980-02-29, 29.02.1980 or 29 Feb 1980."""
    text = text.strip()
    if text[4:5] == "-":
        return date.fromisoformat(text)
    if "." in text:
        day, month, year = text.split(".")
        return date(int(year), int(month), int(day))
    day, name, year = text.split()
    return date(int(year), MONTHS[name[:3].lower()], int(day))


def amount(text: str) -> float:
    """A number written as 1234.5, 1,234.50 or 1.234,50."""
    text = text.strip().replace(" ", "").removesuffix("EUR")
    if "," in text and text.rfind(",") > text.rfind("."):
        text = text.replace(".", "").replace(",", ".")
    return float(text.replace(",", ""))
