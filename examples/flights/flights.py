"""Check and enrich one departure: delay class, kilometres, local departure time, speed."""

from datetime import datetime, timedelta

KM_PER_MILE = 1.609344
FASTEST_KM_PER_H = 1000  # an airliner does not fly faster, not even with the wind
DELAY_CLASSES = ((15, "on time"), (60, "late"), (180, "very late"))


def record(row: dict[str, str]) -> dict[str, str]:
    """The departure with four more columns. Raises ValueError when its columns contradict."""
    scheduled = datetime(
        int(row["year"]), int(row["month"]), int(row["day"]), int(row["hour"]), int(row["minute"])
    )
    if clock(scheduled) != int(row["sched_dep_time"]):
        raise ValueError(f"sched_dep_time {row['sched_dep_time']} is not {scheduled:%H:%M}")
    km = round(float(row["distance"]) * KM_PER_MILE)
    return {
        **row,
        "delay_class": delay_class(row["dep_delay"]),
        "distance_km": str(km),
        "departed": departed(row, scheduled),
        "km_per_h": speed(row["air_time"], km),
    }


def clock(moment: datetime) -> int:
    """Hours and minutes as the table writes them: 5:07 is 507."""
    return moment.hour * 100 + moment.minute


def delay_class(minutes: str) -> str:
    if minutes == "NA":
        return "cancelled"
    for limit, name in DELAY_CLASSES:
        if int(minutes) < limit:
            return name
    return "extremely late"


def departed(row: dict[str, str], scheduled: datetime) -> str:
    """Local time of departure with its UTC offset; empty for a cancelled flight."""
    if row["dep_time"] == "NA":
        return ""
    moment = scheduled + timedelta(minutes=int(row["dep_delay"]))
    if clock(moment) != int(row["dep_time"]) % 2400:
        raise ValueError(f"dep_time {row['dep_time']} is not {moment:%H:%M}, as dep_delay says")
    # The table states the scheduled hour in UTC as well, which gives the offset of that day.
    in_utc = datetime.fromisoformat(row["time_hour"].removesuffix("Z"))
    offset_h = (scheduled.replace(minute=0) - in_utc) / timedelta(hours=1)
    if offset_h not in (-5, -4):
        raise ValueError(f"time_hour {row['time_hour']} is not New York time")
    return f"{moment.isoformat(timespec='minutes')}-{-offset_h:02.0f}:00"


def speed(air_time: str, km: int) -> str:
    if air_time == "NA":
        return ""
    km_per_h = round(km * 60 / int(air_time))
    if km_per_h > FASTEST_KM_PER_H:
        raise ValueError(f"{km} km in {air_time} minutes is {km_per_h} km/h: too fast")
    return str(km_per_h)
