"""About 15 µs of ordinary pure-Python cleaning per customer record."""

import re
import unicodedata
from datetime import date
from hashlib import blake2b

EMAIL = re.compile(r"[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}")
SPACES = re.compile(r"\s+")
NOT_DIGITS = re.compile(r"\D+")
MONTHS = {
    m: n
    for n, m in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
    )
}


def record(row: dict[str, str]) -> dict[str, str]:
    email = row["email"].strip().lower()
    if not EMAIL.fullmatch(email):
        raise ValueError(f"not an e-mail address: {email!r}")
    name = SPACES.sub(" ", unicodedata.normalize("NFC", row["name"])).strip().title()
    digits = NOT_DIGITS.sub("", row["phone"])
    phone = "+" + digits if row["phone"].startswith("+") else "+49" + digits.lstrip("0")
    balance = row["balance"].strip().removesuffix(" EUR")
    if balance.rfind(",") > balance.rfind("."):
        balance = balance.replace(".", "").replace(",", ".")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").lower()
    key = blake2b(plain + email.encode() + phone.encode(), digest_size=8).hexdigest()
    return {
        "id": row["id"],
        "name": name,
        "email": email,
        "domain": email.partition("@")[2],
        "phone": phone,
        "born": born(row["born"].strip()).isoformat(),
        "balance": f"{float(balance.replace(',', '')):.2f}",
        "note": SPACES.sub(" ", row["note"]).strip(),
        "key": key,
        "sounds_like": " ".join(soundex(word) for word in plain.decode().split()),
        "checksum": str(mod97(row["id"] + digits)),
    }


SOUNDS = dict.fromkeys("bfpv", "1") | dict.fromkeys("cgjkqsxz", "2") | dict.fromkeys("dt", "3")
SOUNDS |= {"l": "4", "m": "5", "n": "5", "r": "6"}


def soundex(word: str) -> str:
    """The American Soundex of a word, to find duplicates by sound."""
    code, last = word[:1].upper(), SOUNDS.get(word[:1], "")
    for letter in word[1:]:
        sound = SOUNDS.get(letter, "")
        if sound and sound != last:
            code += sound
            if len(code) == 4:
                return code
        if letter not in "hw":
            last = sound
    return code.ljust(4, "0")


def mod97(digits: str) -> int:
    """Check digits as in ISO 7064 MOD 97-10."""
    rest = 0
    for digit in digits:
        rest = (rest * 10 + ord(digit) - 48) % 97
    return 98 - rest * 100 % 97


def born(text: str) -> date:
    if text[4:5] == "-":
        return date.fromisoformat(text)
    if "." in text:
        day, month, year = text.split(".")
        return date(int(year), int(month), int(day))
    day, name, year = text.split()
    return date(int(year), MONTHS[name[:3].lower()], int(day))
