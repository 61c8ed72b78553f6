"""`oda receipt`: does the provider pay those who made the model?"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from channels.errors import UserError
from channels.settings import load_settings
from channels.terminal import EXIT_CODES, ExitCode, JsonFlag, print_json, run
from client.settings import ClientSettings, load_client_settings, store_file

if TYPE_CHECKING:
    from client.receipts import Checked

app = typer.Typer(
    name="receipt",
    help="Receipts: proof that those who made a model were paid for what you spent.",
    no_args_is_help=True,
)

_REFUTED = (
    "answer-differs",
    "bad-preimage",
    "bad-receipt",
    "batch-twice",
    "overcharge",
    "shares-unpaid",
    "statement-changed",
    "statement-not-signed",
    "truncated",
    "understated",
    "wrong-payee",
    "wrong-root",
    "wrong-session",
    "wrong-terms",
    "wrong-tip",
)
EXIT_CODES.update(dict.fromkeys(_REFUTED, ExitCode.REFUSED))

SessionArgument = Annotated[int, typer.Argument(help="Its number in `oda sessions --all`.")]
ChainOption = Annotated[
    list[str] | None,
    typer.Option("--chain", metavar="HOST:PORT", help="A node of the sidechain; repeatable."),
]


@app.command()
def save(session: SessionArgument, file: Path, as_json: JsonFlag = False) -> None:
    """Fetch the receipt of a closed session and write it to a file."""
    data = run(_fetch(load_client_settings(), session))
    file.write_bytes(data)
    if as_json:
        print_json({"session": session, "file": str(file), "bytes": len(data)})
    else:
        typer.echo(f"The receipt of session {session} is in {file}; check it: oda receipt verify")


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(help="A receipt; the kept one if not given.")
    ] = None,
    session: Annotated[
        int | None, typer.Option("--session", help="Which session it is about.")
    ] = None,
    chain: ChainOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a receipt against your own transcript and the sidechain.

    Found are overcharge, truncation, another model, wrong payees or amounts, payments that were
    shown before, and shares that were never paid.
    """
    settings = load_client_settings({"chain": chain or None})
    checked = run(_verify(settings, file, session))
    if as_json:
        from client.receipts import document

        print_json(document(checked))
    else:
        _show(checked)
    from client.receipts import unpaid

    if (problem := unpaid(checked)) is not None:
        raise problem


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """Which providers paid, and which did not, as far as it is known."""
    from client.check_table import CheckTable
    from client.checking import document
    from client.store import Store
    from client.telling import untold

    settings = load_settings()
    with closing(Store(store_file(settings))) as store, untold(store):
        rows = [(each, store.session(each.session).provider) for each in CheckTable(store).all()]
        if as_json:
            print_json([document(check) | {"provider": provider} for check, provider in rows])
            return
        if not rows:
            typer.echo("No session that named payees was closed yet.")
        for check, provider in rows:
            typer.echo(f"{check.session:>5}  {check.state:<9}  {provider}  {check.sentence}")
        if not load_client_settings().chain and any(each.reason == "no-chain" for each, _ in rows):
            typer.echo(
                "Set client.chain to a node of the sidechain, HOST:PORT, to have it checked."
            )


@app.command("check")
def check_(
    session: Annotated[int | None, typer.Argument(help="Only this one.")] = None,
    chain: ChainOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask the providers again, and say who does not pay.

    `oda chat` and others do so by themselves when it is time.
    """
    settings = load_client_settings({"chain": chain or None})
    if not settings.chain:
        raise UserError(
            "no-chain",
            "Who is owed is on the sidechain: name a node of it with --chain HOST:PORT, or set "
            "client.chain.",
        )
    bad = run(_look(settings, session))
    list_(as_json)
    if bad:
        raise SystemExit(ExitCode.REFUSED)


async def _look(settings: ClientSettings, number: int | None) -> bool:
    """Whether any of what was looked at is bad now."""
    from client.checking import AT_ONCE
    from client.checks import BAD
    from client.market import market

    async with market(load_settings(), settings) as fair:
        table = fair.checking.table
        if number is None:
            numbers = [each.session for each in table.unfinished(AT_ONCE)]
        else:
            numbers = [number]
        looked = [await fair.checking.session(each) for each in numbers]
    if None in looked:
        raise UserError("not-found", f"Session {number} is not closed, or named no payees.")
    return any(each is not None and each.state in BAD for each in looked)


async def _fetch(settings: ClientSettings, number: int) -> bytes:
    from client.sdk import connect
    from client.store import Store

    store = Store(store_file(load_settings()))
    try:
        url = store.session(number).provider
    finally:
        store.close()
    async with connect(url, settings=settings) as client:
        return (await client.receipt(number)).encode()


async def _verify(settings: ClientSettings, file: Path | None, number: int | None) -> Checked:
    from channels import receipts
    from client.check_table import CheckTable
    from client.known_chain import KnownChain
    from client.market import market
    from client.receipts import check, transcript
    from client.store import Store

    store = Store(store_file(load_settings()))
    try:
        if file is not None:
            receipt = receipts.decode(_read(file))
            row = next(
                (r for r in store.sessions() if _id(r.value.id) == receipt.statement.session), None
            )
        elif number is not None and (kept := store.receipt(number)) is not None:
            receipt, row = receipts.decode(kept), store.session(number)
        else:
            raise UserError("not-found", "Name a receipt's file, or --session with a kept one.")
        if row is None or (number is not None and row.number != number):
            raise UserError("no-transcript", "This receipt is about no session of yours.")
        node_id = store.pinned(row.provider)
        if node_id is None:
            raise UserError("no-transcript", "The provider never said which node it is.")
        async with market(load_settings(), settings) as fair:
            seen = transcript(row, store, node_id)
            known = KnownChain(fair.chain, CheckTable(store))
            return await check(receipt, seen, row.number, known)
    finally:
        store.close()


def _read(file: Path) -> bytes:
    from channels.receipts import MAX_BYTES

    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError("unreadable", f"{file} can't be read: {error.strerror}.") from None


def _id(session: bytes | None) -> str:
    return "" if session is None else session.hex()


def _show(checked: Checked) -> None:
    typer.echo(
        f"Session {checked.session}: {checked.spent_msat} msat spent, and the receipt holds."
    )
    typer.echo(f"  provider keeps {checked.provider_msat:>12} msat")
    rows: list[tuple[str, Any]] = [
        ("paid to", checked.paid),
        ("still owed to", checked.carried),
        ("owed to itself", checked.own),
    ]
    for what, amounts in rows:
        for key, amount in amounts.items():
            typer.echo(f"  {what:<14} {amount:>12} msat  {key[:16]}…")
