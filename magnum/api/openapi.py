"""The OpenAPI document, made from the same declarations that serve requests, and a page to browse it by.

The page loads nothing from elsewhere: it works where there is no internet.
"""

import functools
from typing import Any

import msgspec

import magnum
from magnum.api import routing

ROUTES = routing.Routes("description")

FAILURES = {
    400: "The request is wrong; `field` says where.", 401: "No or no good token.", 403: "Policy or quota forbid it.",
    404: "There is no such thing, or it is another project's.", 406: "No such API version.",
    408: "The body did not arrive in time.", 409: "It cannot be done as things are.", 413: "The body is too large.",
    415: "The body is no JSON.", 429: "Too much at once.", 502: "An engine refused.", 503: "A part is away; try again.",
    504: "No answer in time.",
}  # fmt: skip


class Failure(msgspec.Struct):
    """One error."""

    status: int
    code: str
    title: str
    detail: str
    request_id: str
    links: list[dict[str, str]]
    field: str | None = None
    data: dict[str, Any] | None = None


class Failures(msgspec.Struct):
    errors: list[Failure]
    message: str


def _types(operations: list[routing.Operation]) -> list[Any]:
    found: dict[str, Any] = {repr(Failures): Failures}
    for operation in operations:
        for kind in (operation.body, operation.query, *operation.answers.values()):
            if kind is not None:
                found[repr(kind)] = kind
    return list(found.values())


def _name(reference: dict[str, Any]) -> str:
    """Return the name under which a struct's schema is kept; structs of one name have longer ones."""
    return str(reference["$ref"]).rpartition("/")[2]


def _parameters(operation: routing.Operation, schema: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in operation.parameters
    ]
    for name, kind in schema.get("properties", {}).items():
        given = {k: v for k, v in kind.items() if k != "default" or v is not None}
        found.append({"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": given})
    found.append({"name": "OpenStack-API-Version", "in": "header", "required": False, "schema": {"type": "string"}})
    return found


@functools.cache
def document() -> dict[str, Any]:
    """Return the document (OpenAPI 3.1)."""
    from magnum.api import app

    operations = app.OPERATIONS
    kinds = _types(operations)
    shapes, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    shape = {repr(kind): found for kind, found in zip(kinds, shapes, strict=True)}
    failures = {
        str(status): {"description": text, "content": {"application/json": {"schema": shape[repr(Failures)]}}}
        for status, text in FAILURES.items()
    }
    paths: dict[str, Any] = {}
    for operation in operations:
        answers: dict[str, Any] = {}
        for status, kind in operation.answers.items():
            answers[str(status)] = {"description": "" if status != 202 else "Accepted; the work goes on."}
            if kind is not None:
                answers[str(status)]["content"] = {operation.media_type: {"schema": shape[repr(kind)]}}
        entry: dict[str, Any] = {
            "operationId": operation.name, "tags": [operation.tag],
            "summary": (operation.function.__doc__ or "").strip().split("\n")[0],
            "parameters": _parameters(operation, schemas[_name(shape[repr(operation.query)])] if operation.query else {}), "responses": answers | failures,
        }  # fmt: skip
        if operation.body is not None:
            entry["requestBody"] = {
                "required": True, "content": {"application/json": {"schema": shape[repr(operation.body)]}}
            }  # fmt: skip
        if operation.rule:
            entry["description"] = f"Policy rule: `{operation.rule}`"
        entry["security"] = [] if operation.public else [{"token": []}]
        paths.setdefault(operation.path, {})[operation.method.lower()] = entry
    queries = {_name(shape[repr(o.query)]) for o in operations if o.query is not None}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Magnum", "version": magnum.__version__,
                 "description": "The containers service for OpenStack.", "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in schemas.items() if name not in queries},
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
        },
    }  # fmt: skip


@functools.cache
def _encoded() -> bytes:
    return msgspec.json.format(routing.encode(document()), indent=1)


@ROUTES.get("/openapi.json", rule=None, answers={200: dict[str, Any]}, public=True)
async def openapi(call: routing.Call) -> routing.Answer:
    """Read this document."""
    return routing.Answer(200, _encoded())


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Magnum API</title><style>
body{font:15px/1.45 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
h2{margin-top:2em;border-bottom:1px solid #ccc}details{margin:.3em 0;border:1px solid #ddd;border-radius:4px}
summary{padding:.4em .6em;cursor:pointer}code,pre{font-family:ui-monospace,monospace;font-size:13px}
pre{background:#f6f6f6;padding:.6em;overflow:auto}.m{display:inline-block;width:5em;font-weight:600}
details>div{padding:0 .8em .6em}table{border-collapse:collapse}td,th{border:1px solid #ddd;padding:.2em .5em;text-align:left}
</style><h1>Magnum API</h1><p>The machine-readable document: <a href="/openapi.json">/openapi.json</a></p>
<div id="all"></div><script>
const esc=s=>String(s).replace(/[&<>"]/g,c=>({'&':'&amp;','<':'&lt;','>':'&gt;','"':'&quot;'}[c]));
const json=o=>'<pre>'+esc(JSON.stringify(o,null,1))+'</pre>';
fetch('/openapi.json').then(r=>r.json()).then(d=>{
 const see=(s,n)=>{if(!s||n>4)return s;if(s.$ref)return see(d.components.schemas[s.$ref.split('/').pop()],n+1);
  if(Array.isArray(s))return s.map(x=>see(x,n+1));
  if(typeof s==='object')return Object.fromEntries(Object.entries(s).map(([k,v])=>[k,see(v,n+1)]));return s};
 const tags={};
 for(const [p,ms] of Object.entries(d.paths))for(const [m,o] of Object.entries(ms))(tags[o.tags[0]]??=[]).push([m,p,o]);
 document.getElementById('all').innerHTML=Object.entries(tags).map(([t,os])=>'<h2>'+esc(t)+'</h2>'+os.map(([m,p,o])=>
  '<details><summary><span class="m">'+m.toUpperCase()+'</span><code>'+esc(p)+'</code> '+esc(o.summary)+'</summary><div>'
  +(o.description?'<p>'+esc(o.description)+'</p>':'')
  +'<table><tr><th>parameter<th>in<th>type</tr>'+o.parameters.map(q=>'<tr><td>'+esc(q.name)+(q.required?' *':'')+'<td>'+q.in
  +'<td><code>'+esc(JSON.stringify(q.schema))+'</code></tr>').join('')+'</table>'
  +(o.requestBody?'<p>Body</p>'+json(see(o.requestBody.content['application/json'].schema,0)):'')
  +Object.entries(o.responses).filter(([c])=>c<400).map(([c,r])=>'<p>'+c+' '+esc(r.description)+'</p>'
  +(r.content?json(see(Object.values(r.content)[0].schema,0)):'')).join('')+'</div></details>').join('')).join('')});
</script></html>"""


@ROUTES.get("/docs", rule=None, answers={200: str}, media_type="text/html", public=True)
async def page(call: routing.Call) -> routing.Answer:
    """Browse this document."""
    headers = {"Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"}
    return routing.Answer(200, _PAGE.encode(), headers, media_type="text/html; charset=utf-8")
