"""The endpoints of the node's HTTP API, and an OpenAPI 3.1 description made from the types. Pure.

app.py routes by this table and answers with its types, so what is described is what is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from sidechain import api

PREFIX: Final = "/api/v1"
_REF: Final = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """operation: the name of the method of handlers.Handlers. light: a light node has it too."""

    method: str
    path: str
    operation: str
    summary: str
    answer: type
    query: type = api.NoQuery
    body: type | None = None
    light: bool = False
    light_answer: type | None = None
    problems: tuple[int, ...] = ()

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)


ENDPOINTS: Final = (
    Endpoint("GET", "/status", "status", "What the node does.", api.Status, light=True),
    Endpoint(
        "GET",
        "/blocks",
        "blocks",
        "Blocks of the chain, the highest first.",
        api.Blocks,
        api.BlocksQuery,
        light=True,
    ),
    Endpoint(
        "GET",
        "/blocks/{block}",
        "block",
        "A block by its hash or height.",
        api.Block,
        light=True,
        problems=(404,),
    ),
    Endpoint("GET", "/pending", "pending", "What waits for weights or data.", api.Pending),
    Endpoint("GET", "/mempool", "mempool", "Waiting transactions.", api.Mempool, api.PageQuery),
    Endpoint(
        "GET",
        "/transactions/{txid}",
        "transaction",
        "A transaction, waiting or in a block.",
        api.FoundTransaction,
        problems=(404,),
    ),
    Endpoint(
        "POST",
        "/transactions",
        "post_transaction",
        "Offer a transaction.",
        api.Posted,
        body=api.NewTransaction,
        problems=(409, 413, 415, 422),
    ),
    Endpoint("GET", "/models", "models", "All models.", api.Models, api.PageQuery),
    Endpoint(
        "GET",
        "/models/{model}",
        "model",
        "A model with its versions and shards.",
        api.Model,
        light=True,
        light_answer=api.ProvenModel,
        problems=(404, 503),
    ),
    Endpoint(
        "GET",
        "/weights/{weights_root}",
        "weights",
        "Whose weights these are.",
        api.Weights,
        problems=(404,),
    ),
    Endpoint("GET", "/commits/{commit}", "commit", "An open commit.", api.Commit, problems=(404,)),
    Endpoint("GET", "/payees", "payees", "Where keys are paid.", api.Payees, api.PageQuery),
    Endpoint(
        "GET",
        "/payees/{key}",
        "payee",
        "Where a key is paid.",
        api.Payee,
        light=True,
        problems=(404, 503),
    ),
    Endpoint(
        "GET",
        "/beneficiaries",
        "beneficiaries",
        "Who is owed for serving weights.",
        api.Beneficiaries,
        api.BeneficiariesQuery,
        light=True,
        problems=(503,),
    ),
    Endpoint(
        "GET",
        "/announcements",
        "announcements",
        "Providers that announce themselves.",
        api.Announcements,
        api.AnnouncementsQuery,
        light=True,
    ),
    Endpoint(
        "POST",
        "/announcements",
        "post_announcement",
        "Announce a provider.",
        api.Posted,
        body=api.NewAnnouncement,
        light=True,
        problems=(409, 413, 415, 422),
    ),
    Endpoint(
        "GET",
        "/proofs",
        "proofs",
        "Entries of the state with their proofs.",
        api.Proofs,
        api.ProofsQuery,
        problems=(404, 422),
    ),
    Endpoint("GET", "/peers", "peers", "Connected peers, and bans.", api.Peers, light=True),
    Endpoint("GET", "/rejections", "rejections", "What was refused lately.", api.Refusals),
)


def document(version: str, *, light: bool) -> dict[str, Any]:
    """The OpenAPI document of a node."""
    shown = [each for each in ENDPOINTS if each.light or not light]
    types: set[Any] = {api.Problem, api.Health}
    for each in shown:
        types.add(_answer(each, light))
        types |= {each.body} if each.body else set()
    ordered = sorted(types, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {
        "/health": {"get": _operation("health", "Whether the node is up.", api.Health)}
    }
    for each in shown:
        operation = _operation(each.operation, each.summary, _answer(each, light))
        operation["parameters"] = [*_in_path(each), *_in_query(each)]
        if each.body:
            operation["requestBody"] = {"required": True, "content": _json(each.body)}
        for status in (400, *each.problems):
            operation["responses"][str(status)] = {"$ref": "#/components/responses/Problem"}
        paths.setdefault(PREFIX + each.path, {})[each.method.lower()] = operation
    refused = {
        "description": "What is wrong, and what to do.",
        "content": {"application/problem+json": {"schema": _schema(api.Problem)}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ODA sidechain node",
            "version": version,
            "description": f"{(api.__doc__ or '').partition('. Pure')[0]}.\n\n"
            "GET /events tells what happens as server-sent events; GET /metrics is Prometheus'; "
            "GET /peer is the WebSocket of other nodes.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "responses": {"Problem": refused}},
    }


def _answer(endpoint: Endpoint, light: bool) -> type:
    return (endpoint.light_answer if light else None) or endpoint.answer


def _operation(name: str, summary: str, answer: type) -> dict[str, Any]:
    fine = {"description": "As the schema says.", "content": _json(answer)}
    return {"operationId": name, "summary": summary, "responses": {"200": fine}}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": _schema(kind)}}


def _schema(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _in_path(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in endpoint.parameters
    ]


def _in_query(endpoint: Endpoint) -> list[dict[str, Any]]:
    (_,), schemas = msgspec.json.schema_components([endpoint.query], ref_template=_REF)
    described: Mapping[str, Any] = schemas[endpoint.query.__name__]
    required = described.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in described.get("properties", {}).items()
    ]
