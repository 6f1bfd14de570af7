"""`pointsman keys`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.groups import Command
from deployments.cli.options import KEY_VARIABLE, ConfigStateDir, Json, RunningConfig

if TYPE_CHECKING:
    from pydantic import ValidationError

    from cluster.config.cluster import ClusterConfig
    from cluster.keys import KeyRecord
    from deployments.access.keys_file import KeysFile, Records
    from deployments.access.usage import KeyUsage
    from deployments.cli.place import Place

app = typer.Typer(
    help="Make, list and revoke API keys; a running cluster takes changes over by itself.", no_args_is_help=True
)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's public id, from `keys list`.", show_default=False)]


def _limit(option: str, what: str) -> object:
    return typer.Option(option, min=1, metavar="N", help=f"{what}. Default: unlimited.", show_default=False)


@app.command("add", cls=Command)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom or what the key is for.", show_default=False)],
    tenant: Annotated[
        str,
        typer.Option(
            "--tenant", metavar="NAME", help="Whose key it is; cached prompts are shared within a tenant alone."
        ),
    ] = "default",
    requests_per_minute: Annotated[int | None, _limit("--requests-per-minute", "Requests a minute")] = None,
    tokens_per_minute: Annotated[int | None, _limit("--tokens-per-minute", "Tokens a minute")] = None,
    concurrency: Annotated[int | None, _limit("--concurrency", "Requests at once")] = None,
    state_dir: ConfigStateDir = None,
    config: RunningConfig = None,
    json: Json = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    import secrets

    from pydantic import ValidationError

    from cluster.keys import KeyLimits, mint

    file, _ = _keys_file(state_dir, config)
    try:
        limits = KeyLimits(
            requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrency=concurrency
        )
        minted = mint(name, time.time(), secrets.token_bytes, tenant=tenant, limits=limits)
    except ValidationError as error:
        raise CliError(_wrong_fields(error), code=ExitCode.USAGE) from None
    with _file_errors():
        file.append(minted.record)
    if json:
        output.print_json({"key": minted.key, **_record(minted.record)})
        return
    typer.echo(minted.key)
    output.remark((f"Key {minted.record.id} of {name}. ", "bold"), "It is shown this once; only its hash is kept.")
    output.remark(f"Use it: export {KEY_VARIABLE}=... for this command, OPENAI_API_KEY=... for OpenAI clients.")


@app.command("list", cls=Command)
def list_keys(state_dir: ConfigStateDir = None, config: RunningConfig = None, json: Json = False) -> None:
    """List the keys, the revoked ones too. The keys themselves are not kept."""
    file, place = _keys_file(state_dir, config)
    records = _load(file)
    if json:
        output.print_json([_record(record) for record in records.values()])
        return
    if not records:
        output.print_line(f"There are no keys in {file.path}; `{place.command('keys add NAME')}` makes one.")
        return
    bounds = ("requests/min", "tokens/min", "at once")
    table = output.table("id", "name", "tenant", "made", *bounds, "state", right=bounds)
    for record in sorted(records.values(), key=lambda record: record.created):
        limits = record.limits
        table.add_row(
            record.id,
            output.visible(record.name),
            record.tenant,
            _day(record.created),
            _bound(limits.requests_per_minute),
            _bound(limits.tokens_per_minute),
            _bound(limits.concurrency),
            "valid" if record.revoked is None else f"revoked {_day(record.revoked)}",
        )
    output.stdout().print(table)


@app.command("revoke", cls=Command)
def revoke(key_id: KeyId, state_dir: ConfigStateDir = None, config: RunningConfig = None, json: Json = False) -> None:
    """Refuse a key from now on; a running cluster does so within a second."""
    from deployments.access.keys_file import UnknownKeyError

    file, place = _keys_file(state_dir, config)
    try:
        with _file_errors():
            record = file.revoke(key_id, time.time())
    except UnknownKeyError as error:
        raise _unknown(str(error), place) from None
    if json:
        output.print_json(_record(record))
        return
    output.print_line(f"Key {record.id} of {output.visible(record.name)} is revoked.")


@app.command("usage", cls=Command)
def usage(
    key_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="One key instead of all.", show_default=False)
    ] = None,
    state_dir: ConfigStateDir = None,
    config: RunningConfig = None,
    json: Json = False,
) -> None:
    """Show what keys have used since they were made. A running cluster writes it down every few seconds."""
    import sqlite3

    from deployments.access.usage import KeyUsage, read_usage
    from deployments.paths import usage_path

    file, place = _keys_file(state_dir, config)
    records = _load(file)
    if key_id is not None and key_id not in records:
        raise _unknown("no key has that id", place)
    try:
        used = read_usage(usage_path(place.state_dir))
    except sqlite3.Error as error:
        raise CliError(f"the usage file cannot be read: {error}", "It is begun anew at the next start.") from None
    wanted = [record for record in records.values() if key_id in (None, record.id)]
    rows = [(record, used.get(record.id, KeyUsage())) for record in wanted]
    if json:
        output.print_json([_usage(record, use) for record, use in rows])
        return
    numbers = ("requests", "refused", "prompt tokens", "completion tokens")
    table = output.table("id", "name", *numbers, "last used", right=numbers)
    for record, use in rows:
        counts = (use.requests, use.rejected, use.prompt_tokens, use.completion_tokens)
        last = _day(use.last_used, with_time=True) if use.last_used else "never"
        table.add_row(record.id, output.visible(record.name), *map(str, counts), last)
    output.stdout().print(table)


def _keys_file(state_dir: Path | None, config: Path | None) -> tuple[KeysFile, Place]:
    from deployments.access.keys_file import KeysFile
    from deployments.cli.config_files import config_in_force, load_config
    from deployments.cli.place import find_place

    named: ClusterConfig | None = load_config(config) if config is not None else None
    place = find_place(state_dir, named)
    in_force = named if named is not None else load_config(config_in_force(None, place))
    return KeysFile(in_force.keys_path(place.state_dir)), place


def _unknown(message: str, place: Place) -> CliError:
    return CliError(message, f"`{place.command('keys list')}` shows the ids.", ExitCode.USAGE)


def _load(file: KeysFile) -> Records:
    with _file_errors():
        return file.load()


@contextmanager
def _file_errors() -> Iterator[None]:
    """Turns what is wrong with a keys file into an error of the command."""
    from cluster.keys import KeysFileError

    try:
        yield
    except KeysFileError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"the keys file {error.filename} cannot be used: {error.strerror}") from None


def _wrong_fields(error: ValidationError) -> str:
    wrong = (f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors(include_input=False))
    return "this key cannot be made: " + "; ".join(wrong)


def _record(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "created": record.created,
        "revoked": record.revoked,
        "limits": record.limits.model_dump(),
    }


def _usage(record: KeyRecord, use: KeyUsage) -> dict[str, object]:
    return {"id": record.id, "name": record.name, "revoked": record.revoked is not None, **asdict(use)}


def _bound(limit: int | None) -> str:
    return "-" if limit is None else str(limit)


def _day(seconds: float, *, with_time: bool = False) -> str:
    return time.strftime("%Y-%m-%d %H:%M" if with_time else "%Y-%m-%d", time.localtime(seconds))
