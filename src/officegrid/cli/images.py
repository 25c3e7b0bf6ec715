"""Commands about images on the coordinator: push one, see who runs what, lead its rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from pydantic import ValidationError

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client.images import push as push_image
from officegrid.client.progress import PushLine
from officegrid.client.text import ago, bytes_text, table
from officegrid.core.errors import UsageError
from officegrid.core.quantities import duration_text, parse_duration_s
from officegrid.wire.images import (
    ImageList,
    ImageUseView,
    ImageView,
    RolloutChange,
    RolloutSettings,
)
from officegrid.wire.mistakes import mistakes

PATIENCE_S = 60.0
SETTINGS_PATH = "/v1/image-rollout"
WORTH_WORDS = ("rolling", "paused", "rolled_back")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def push(folder: Path, as_json: bool) -> None:
    """Store the image that `image build` wrote to DIR, and begin to roll it out."""
    with connect(retry_s=PATIENCE_S) as connection, PushLine() as line:
        view = push_image(connection, folder, line)
    if as_json:
        show_json(view.model_dump())
        return
    click.echo(f"{view.name} is version {view.version}: {_state(view)}. {view.words}")
    if view.state in ("rolled_back", "replaced"):
        click.echo(f"Roll it out again: officegrid image rollout {view.version} --resume", err=True)
    else:
        click.echo("Follow it: officegrid image list", err=True)


@click.command("list")
@json_option
def list_images(as_json: bool) -> None:
    """List images, newest first, and how many desktops run each."""
    with connect() as connection:
        reply = connection.call("GET", "/v1/images", reply=ImageList)
    if as_json:
        show_json(reply.model_dump(exclude={"images": {"__all__": {"uses"}}}))
        return
    if not reply.images:
        click.echo("No image was pushed yet. Build one: officegrid image build -o DIR")
        return
    headers = [
        "version", "name", "state", "share", "running", "good", "failed", "fetching", "size",
        "pushed", "by",
    ]  # fmt: skip
    click.echo(table(headers, [_row(view) for view in reply.images]))
    for number, view in enumerate(reply.images):
        if view.state in WORTH_WORDS and (number == 0 or view.state != "rolled_back"):
            click.echo(f"\nVersion {view.version}: {view.words}")
    if reply.without:
        click.echo(f"\nDesktops that have no VM yet: {reply.without}")
    if reply.elsewhere:
        click.echo(f"\nDesktops with an image of their own, named in agent.toml: {reply.elsewhere}")


def _path(image: str) -> str:
    return f"/v1/images/{quote(image, safe='')}"


def _state(view: ImageView) -> str:
    return view.state.replace("_", " ")


def _row(view: ImageView) -> list[str]:
    counts = [str(view.counts.get(state, 0)) for state in ("good", "failed", "fetching")]
    return [
        str(view.version), view.name, _state(view), f"{100 * view.share:.3g}%", str(view.running),
        *counts, _sizes(view), ago(view.created_at), view.pushed_by,
    ]  # fmt: skip


def _sizes(view: ImageView) -> str:
    return ", ".join(f"{name} {bytes_text(size)}" for name, size in view.sizes.items())


@click.command()
@click.argument("image", metavar="ID")
@json_option
def show(image: str, as_json: bool) -> None:
    """Show an image, by id, version or name, and what each desktop says about it."""
    with connect() as connection:
        view = connection.call("GET", _path(image), reply=ImageView)
    if as_json:
        show_json(view.model_dump())
        return
    rows = [
        ("image", f"{view.name}, version {view.version}"),
        ("id", view.id),
        ("state", f"{_state(view)}, for {100 * view.share:.3g}% of the desktops"),
        ("", view.words),
        ("running", f"on {view.running} desktops"),
        ("files", _sizes(view)),
        ("worker", f"officegrid {view.worker_version}" if view.worker_version else ""),
        ("pushed", f"{ago(view.created_at)} by {view.pushed_by}"),
        *view.about.items(),
    ]
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        if text:
            click.echo(f"{name:<{width}}{text}")
    if view.uses:
        cells = [
            [
                use.machine_name, "yes" if use.running else "no", use.state, _share_text(use),
                ago(use.at), use.text,
            ]
            for use in view.uses
        ]  # fmt: skip
        click.echo("\n" + table(["desktop", "runs it", "state", "fetched", "since", ""], cells))


def _share_text(use: ImageUseView) -> str:
    if use.state != "fetching" or not use.total_bytes:
        return ""
    return f"{100 * use.done_bytes / use.total_bytes:.0f}%"


@click.command()
@click.argument("image", metavar="[ID]", required=False)
@click.option("--pause", "action", flag_value="pause", help="No further desktop starts with it.")
@click.option("--resume", "action", flag_value="resume", help="Go on; or bring an old one back.")
@click.option("--finish", "action", flag_value="finish", help="All desktops now; twice: accept it.")
@click.option("--roll-back", "action", flag_value="roll_back", help="All back to the one before.")
@click.option("--retry", "action", flag_value="retry", help="Try it again where it failed.")
@click.option("--soak", help="How long each stage lasts at least: 10m, 1h.")
@click.option("--stages", help="Shares of the desktops, such as 1%,10%,100%.")
@click.option("--good-share", help="Of those that tried it, so many must run it well: 80%.")
@click.option("--failed-share", help="When more of them failed, all go back: 20%.")
@json_option
def rollout(
    image: str | None, action: str | None, soak: str | None, stages: str | None,
    good_share: str | None, failed_share: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Lead the rollout of image ID; without ID, see or set how all images roll out."""
    changes = _settings(soak, stages, good_share, failed_share)
    if image is None:
        if action is not None:
            raise UsageError(
                f"Which image is to be changed with --{action.replace('_', '-')}?",
                fix="Name its version; `officegrid image list` has them.",
            )
        _show_settings(changes, as_json)
        return
    if changes:
        raise UsageError(
            "--soak, --stages, --good-share and --failed-share are for all images, not for one.",
            fix="Leave the image out: `officegrid image rollout --soak 10m`.",
        )
    with connect() as connection:
        path = _path(image)
        if action is None:
            view = connection.call("GET", path, reply=ImageView)
        else:
            body = RolloutChange.model_validate({"action": action})
            view = connection.call(
                "POST", f"{path}/rollout", body=body, reply=ImageView, retry=False
            )
    if as_json:
        show_json(view.model_dump())
        return
    click.echo(f"{view.name}, version {view.version}: {_state(view)}. {view.words}")


def _settings(
    soak: str | None, stages: str | None, good_share: str | None, failed_share: str | None
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if soak is not None:
        changes["soak_s"] = parse_duration_s(soak)
    if stages is not None:
        changes["stages"] = [_share(part) for part in stages.split(",")]
    if good_share is not None:
        changes["good_share"] = _share(good_share)
    if failed_share is not None:
        changes["failed_share"] = _share(failed_share)
    return changes


def _share(text: str) -> float:
    """ "20%" or "0.2" as 0.2."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        raise UsageError(f"{text!r} is not a share.", fix='Write it like "20%".') from None
    return number / 100 if text.strip().endswith("%") else number


def _show_settings(changes: dict[str, Any], as_json: bool) -> None:
    with connect() as connection:
        known = connection.call("GET", SETTINGS_PATH, reply=RolloutSettings)
        if changes:
            try:
                new = RolloutSettings.model_validate({**known.model_dump(), **changes})
            except ValidationError as error:
                first = mistakes(error)[0]
                name = first.place[0].removesuffix("_s").replace("_", "-")
                raise UsageError(f"--{name} is wrong.", first.sentence) from None
            known = connection.call("PUT", SETTINGS_PATH, body=new, reply=RolloutSettings)
    if as_json:
        show_json(known.model_dump())
        return
    shares = ", ".join(f"{100 * share:g}%" for share in known.stages)
    rows = [
        ["stages", shares],
        ["soak", duration_text(known.soak_s)],
        ["good-share", f"{100 * known.good_share:g}%"],
        ["failed-share", f"{100 * known.failed_share:g}%"],
    ]
    click.echo(table(["setting", "value"], rows))
