"""`oda open`, `oda chat`, `oda sessions` and `oda close`: buy inference, token by token."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from channels.errors import OdaError, UserError
from channels.settings import Network, Settings, load_settings
from channels.terminal import ExitCode, JsonFlag, print_json, progress, run, stderr
from channels.units import Msat, Sat, UnixTime
from client import receipt_commands
from client.gateway.commands import gateway
from client.settings import ClientSettings, lightning_rpc_file, load_client_settings, store_file

if TYPE_CHECKING:
    from channels.lightning import Lightning
    from client.answer import Event
    from client.channel import Closing, Opening, Usable
    from client.discovery import Seller, Survey
    from client.display import Display
    from client.failover import OpenChannel, Switched
    from client.sdk import Refund
    from client.store import SessionRow, Store

CONFIRMATIONS = 6
"""Blocks that are enough for a channel and for its announcement."""

ProviderOption = Annotated[str | None, typer.Option("--provider", help="The provider's URL.")]


def mount(root: typer.Typer) -> None:
    root.command("open")(open_)
    root.command()(chat)
    root.command()(sessions)
    root.command()(close)
    root.command()(providers)
    root.command()(gateway)
    root.add_typer(receipt_commands.app)


# Open --------------------------------------------------------------------------------------------


def open_(
    provider: Annotated[str | None, typer.Argument(help="The provider's URL.")] = None,
    amount: Annotated[int | None, typer.Option("--amount", help="Satoshis to lock up.")] = None,
    node: Annotated[
        str | None, typer.Option("--node", help="ID@HOST:PORT, where the provider says none.")
    ] = None,
    another: Annotated[bool, typer.Option("--another", help="Even if there is one.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it can be used.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Open a Lightning channel to a provider, and show what that costs."""
    settings = load_client_settings({"provider": provider, "channel_sat": amount})
    opening, usable = run(_open(settings.provider, settings.channel_sat, node, another, wait))
    if as_json:
        print_json({"opening": opening, "usable": usable})
        return
    typer.echo(f"Channel       {opening.channel_id}")
    typer.echo(f"  with        {opening.node_id}")
    typer.echo(f"  funding     {opening.funding_txid}")
    typer.echo(f"  amount      {opening.amount_sat:>9} sat")
    typer.echo(f"  fee         {opening.fee_sat:>9} sat  paid to the miners")
    typer.echo(f"  push        {opening.push_sat:>9} sat  given to the provider as its reserve")
    if usable is None:
        typer.echo("It can be used when its funding transaction has confirmed.")
        return
    typer.echo(f"  our reserve {usable.reserve_sat:>9} sat  locked while the channel is open")
    typer.echo(f"  to spend    {usable.spendable_msat // 1000:>9} sat")
    typer.echo('Ask something: oda chat "…"')


async def _open(
    url: str, amount: Sat, named: str | None, another: bool, wait: bool
) -> tuple[Opening, Usable | None]:
    import aiohttp

    from client.channel import open_channel, wait_until_usable
    from client.provider import Provider
    from client.sdk import check_network
    from client.store import Store

    settings = load_settings()
    async with aiohttp.ClientSession() as http:
        provider = Provider(url, http)
        catalogue = await provider.models()
    node_id, address = catalogue.oda.node_id, catalogue.oda.address
    if named is not None:
        node_id, _, address = named.partition("@")
    if not re.fullmatch("0[23][0-9a-f]{64}", node_id or "") or not re.fullmatch(
        r"\S+:[0-9]{1,5}", address or ""
    ):
        raise UserError(
            "no-node-address",
            f"{provider.url} does not say where its Lightning node is: ask its owner, and give it "
            "as --node ID@HOST:PORT.",
        )
    assert node_id is not None  # they have just matched
    assert address is not None
    async with _node() as lightning:
        check_network((await lightning.getinfo()).network, settings.network)
        store = Store(store_file(settings))
        try:
            store.pin(provider.url, node_id, _now())
        finally:
            store.close()
        opening = await open_channel(lightning, node_id, address, amount, another=another)
        if not wait:
            return opening, None
        with progress("Waiting for the funding transaction to confirm") as show:
            await _mine_on_regtest(settings, CONFIRMATIONS)
            return opening, await wait_until_usable(lightning, opening, show)


async def _mine_on_regtest(settings: Settings, blocks: int) -> None:
    """Nobody else mines on a network of our own. It is asked through the command line, as a
    person would; where it is not `oda regtest` that runs the network, its owner mines."""
    if settings.network is not Network.REGTEST:
        return
    if not (settings.regtest_dir / "network.json").exists():
        stderr().print("Waiting for confirmations: mine some blocks on your regtest network.")
        return
    program = (sys.executable, "-m", "client.cli", "--data", str(settings.data))
    mining = await asyncio.create_subprocess_exec(
        *program, "regtest", "mine", str(blocks), stdout=asyncio.subprocess.DEVNULL
    )
    await mining.wait()


def _node() -> Lightning:
    from channels.lightning import Lightning

    socket = lightning_rpc_file()
    if not socket.exists():
        raise UserError(
            "not-running",
            f"No Lightning node runs here ({socket} is missing): start a network with "
            "`oda regtest up`, or the node with `oda lightning start`.",
        )
    return Lightning(socket)


def _now() -> UnixTime:
    return UnixTime(int(time.time()))


# Chat --------------------------------------------------------------------------------------------


def chat(
    question: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    provider: ProviderOption = None,
    model: Annotated[str | None, typer.Option(help="Which model.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer.")] = None,
    max_session_sat: Annotated[
        int | None, typer.Option(min=1, help="The most to pay into one session.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask, and pay while the answer comes. Ctrl-C stops the paying at once.

    Without --provider, all that are known are asked for their price; the best one answers, and
    where it fails, the next one.
    """
    if question == "-":
        question = sys.stdin.read()
    settings = load_client_settings({"provider": provider, "max_session_sat": max_session_sat})
    asked: dict[str, Any] = {"model": model, "max_tokens": max_tokens}
    asked |= {"temperature": temperature, "seed": seed}
    display = _display(as_json)
    asked |= {"stop": stop or None}
    finished = run(_chat(settings, question, asked, display, any_=provider is None))
    from client.telling import telling

    with telling(load_settings(), as_json) as news:
        if as_json:
            print_json(display.document(finished) | {"receipts": news})
    if not finished:
        # Not typer.Exit: what is to be said was said, in one document with --json.
        raise SystemExit(ExitCode.INTERRUPTED)


def _display(as_json: bool) -> Display:
    from client.display import Display

    return Display(as_json)


async def _chat(
    settings: ClientSettings, question: str, asked: dict[str, Any], display: Display, any_: bool
) -> bool:
    """any_: whichever provider is best. False where Ctrl-C ended it."""
    from client.market import market
    from client.sdk import connect
    from client.telling import look

    async with AsyncExitStack() as stack:
        fair = await stack.enter_async_context(market(load_settings(), settings))
        looking = asyncio.create_task(look(fair))
        stack.push_async_callback(_ended, looking)
        if any_ and len(fair.urls) > 1:
            answer: AsyncGenerator[Event | Switched, None] = fair.ask(
                question, asked, open_for(settings)
            )
        else:
            client = await stack.enter_async_context(
                connect(settings.provider, settings=settings, chain=fair.chain)
            )
            answer = client.chat(question, **asked)
        with display:
            try:
                async with aclosing(answer) as events:
                    async for event in events:
                        display.show(event)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or display.cost is None:
                    raise
                task.uncancel()
                display.left()
                looking.cancel()
                return False
        await asyncio.wait((looking,))
        return True


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def open_for(settings: ClientSettings) -> OpenChannel:
    """Opens a channel where a provider can't be paid otherwise."""

    async def open_for(seller: Seller) -> bool:
        try:
            await _open(seller.url, settings.channel_sat, None, False, True)
        except OdaError as error:
            stderr().print(f"No channel to {seller.url}: {error}")
            return False
        return True

    return open_for


# Providers ---------------------------------------------------------------------------------------


def providers(
    model: Annotated[str | None, typer.Option(help="Only those of a model.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List providers and their models: best first, by price, reputation and latency."""
    found = run(_survey(load_client_settings(), model))
    from client.telling import telling

    with telling(load_settings(), as_json) as news:
        if as_json:
            print_json(
                {
                    "providers": [seller.document() for seller in found.sellers],
                    "silent": [
                        {"url": each.url, "reason": each.reason, "message": each.sentence}
                        for each in found.silent
                    ],
                    "receipts": news,
                }
            )
            return
        _show_survey(found)


def _show_survey(found: Survey) -> None:
    from rich.table import Table

    from channels.terminal import stdout
    from client.display import printable

    table = Table("provider", "model", "msat/token in", "out", "reputation", "latency", "score")
    for seller in found.sellers:
        entry, standing = seller.model, seller.model.sidechain
        table.add_row(
            seller.url,
            printable(entry.id),
            str(entry.input_msat_per_token),
            str(entry.output_msat_per_token),
            f"{seller.score / 10:.1f} %" + (", does not pay its shares" if seller.owes else ""),
            f"{seller.latency_ms} ms",
            "" if standing is None or standing.score is None else str(standing.score),
        )
    stdout().print(table)
    for each in found.silent:
        stderr().print(f"{each.url}: {each.sentence}", highlight=False)


async def _survey(settings: ClientSettings, model: str | None) -> Survey:
    from client.market import market
    from client.telling import look

    async with market(load_settings(), settings) as fair:
        # First, because it decides who is asked last.
        await look(fair)
        return await fair.survey(model)


# Sessions ----------------------------------------------------------------------------------------


def sessions(
    all_: Annotated[bool, typer.Option("--all", help="Closed ones too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what was paid, what is left and what came back, and whether shares were paid."""
    from client.telling import look_if_due, telling

    settings = load_settings()
    run(look_if_due(settings, load_client_settings()))
    rows = _rows(live=not all_)
    checks = _checks()
    if as_json:
        print_json([_row(row) | {"receipt": checks.get(row.number)} for row in rows])
        return
    with telling(settings, as_json):
        if rows:
            _show_sessions(rows, checks)
        else:
            typer.echo("No session is open." if not all_ else "There was no session yet.")


def _show_sessions(rows: list[SessionRow], checks: dict[int, str]) -> None:
    from rich.table import Table

    from channels.terminal import stdout
    from client.display import sat_text

    shared = any(row.number in checks for row in rows)
    names = ["provider", "model", "state", "paid", "spent", "left", "refund"]
    table = Table("session", *names, *(["shares"] if shared else []))
    for row in rows:
        figures = _row(row)
        amounts = [sat_text(figures[n]) for n in ("paid_msat", "spent_msat", "left_msat")]
        value = row.value
        ends = [value.refund_status or "", *([checks.get(row.number, "")] if shared else [])]
        table.add_row(str(row.number), row.provider, value.model, value.phase, *amounts, *ends)
    stdout().print(table)


def _checks() -> dict[int, str]:
    """By session: what is known of its shares (checks.CheckState)."""
    from client.check_table import CheckTable

    with _stored() as store:
        return (
            {} if store is None else {each.session: each.state for each in CheckTable(store).all()}
        )


def _rows(live: bool) -> list[SessionRow]:
    with _stored() as store:
        return [] if store is None else store.sessions(live=live)


@contextmanager
def _stored() -> Iterator[Store | None]:
    """None where nothing was ever bought."""
    from client.store import Store

    path = store_file(load_settings())
    if not path.exists():
        yield None
        return
    store = Store(path)
    try:
        yield store
    finally:
        store.close()


def _row(row: SessionRow) -> dict[str, Any]:
    value = row.value
    return {
        "session": row.number,
        "provider": row.provider,
        "model": value.model,
        "state": value.phase,
        "paid_msat": value.paid,
        "spent_msat": value.served,
        "left_msat": max(Msat(0), value.exposure),
        "refund_msat": value.refund,
        "refund_status": value.refund_status,
    }


# Close -------------------------------------------------------------------------------------------


def close(
    session: Annotated[int | None, typer.Argument(help="Its number in `oda sessions`.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every session.")] = False,
    channel: Annotated[
        bool, typer.Option("--channel", help="The provider's Lightning channel too.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="The channel too, without the provider's consent if it gives none."
        ),
    ] = False,
    provider: ProviderOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Leave: the unspent rest of a session comes back, and with --channel all coins on chain.

    After a forced close coins come back later; repeat it to see which, and when.
    """
    rows = _to_close(session, all_, channel or force)
    url = load_client_settings({"provider": provider}).provider
    left = run(_leave(rows, url, channel=channel or force, force=force))
    from client.telling import telling

    with telling(load_settings(), as_json) as news:
        if as_json:
            print_json(msgspec.to_builtins(left) | {"receipts": news})
        else:
            _show_left(left)


@dataclass(frozen=True, slots=True)
class Left:
    """unsettled: sessions that a forced close could not settle, with the reason."""

    refunds: list[Refund]
    channels: list[Closing]
    onchain_sat: Sat | None
    unsettled: dict[int, str]


def _show_left(left: Left) -> None:
    for number, reason in left.unsettled.items():
        typer.echo(f"Session {number} was not settled: {reason}")
    for refund in left.refunds:
        typer.echo(
            f"Session {refund.session}: paid {refund.paid_msat} msat, spent {refund.spent_msat}, "
            f"{refund.received_msat} came back ({refund.status})"
        )
        if refund.unaccounted_msat:
            typer.echo(f"  {refund.unaccounted_msat} msat less than what is due")
    for closing in left.channels:
        typer.echo(f"Channel {closing.channel_id}: {closing.type} close")
        for txid in closing.txids:
            typer.echo(f"  transaction {txid}")
        for claim in closing.claims:
            when = f"from block {claim.height}, in {claim.in_blocks} blocks"
            if not claim.confirmed:
                when += " if the next one has this transaction"
            typer.echo(f"  {claim.amount_msat // 1000} sat {when} ({claim.kind})")
    if left.onchain_sat is not None:
        typer.echo(f"Confirmed on chain: {left.onchain_sat} sat")


def _to_close(number: int | None, every: bool, channel: bool) -> list[SessionRow]:
    if number is not None:
        found = [row for row in _rows(live=False) if row.number == number]
        if not found:
            raise UserError("not-found", f"There is no session {number}; see: oda sessions --all")
        return found
    live = _rows(live=True)
    if every or channel or len(live) == 1:
        return live
    if not live:
        raise UserError("not-found", "No session is open.")
    raise UserError(
        "which-session", "Several sessions are open: name one (oda sessions), or say --all."
    )


async def _leave(rows: list[SessionRow], url: str, *, channel: bool, force: bool) -> Left:
    from client.sdk import connect
    from client.telling import look_at

    refunds: list[Refund] = []
    unsettled: dict[int, str] = {}
    for row in rows:
        try:
            async with connect(row.provider) as client:
                refunds += await client.close(row.number)
        except OdaError as error:
            if not force:
                raise
            unsettled[row.number] = str(error)  # what it still owes stays on record
    await look_at(load_settings(), load_client_settings(), [row.number for row in rows])
    if not channel:
        return Left(refunds, [], None, unsettled)
    closings, onchain = await _close_channels([row.provider for row in rows], url, force=force)
    return Left(refunds, closings, onchain, unsettled)


async def _close_channels(
    providers: list[str], url: str, *, force: bool
) -> tuple[list[Closing], Sat]:
    from client.channel import close_channels, with_claims
    from client.provider import normal_url
    from client.store import Store

    urls = set(providers) or {normal_url(url)}
    store = Store(store_file(load_settings()))
    try:
        node_ids = [node_id for each in sorted(urls) if (node_id := store.pinned(each))]
    finally:
        store.close()
    if not node_ids:
        raise UserError("no-channel", f"No channel was ever opened to {', '.join(sorted(urls))}.")
    async with _node() as lightning:
        closings = [
            closing
            for node_id in node_ids
            for closing in await close_channels(lightning, node_id, force=force)
        ]
        await _mine_on_regtest(load_settings(), 1)
        if force:
            height = (await lightning.getinfo()).blockheight
            closings = await with_claims(lightning, closings, height)
        funds = await lightning.listfunds()
    confirmed = sum(o.amount_msat for o in funds.outputs if o.status == "confirmed")
    return closings, Sat(confirmed // 1000)
