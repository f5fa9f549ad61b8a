"""Holds a flow server's answers against its own description.

openapi_judge.py URL PATH...  reads URL/api/v1/openapi.json, has it validated as OpenAPI 3.1, asks each PATH (as a client
writes it: traces/5b8e…?page=1), finds the operation that it belongs to, and validates status, type and body against its
schema, 3 messages of the live view from stdin as LiveMessage. Prints {"judged": N}; anything wrong ends it with 1.
"""

import json
import re
import sys
import urllib.error
import urllib.request

from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import validate

base = sys.argv[1]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(path):
    try:
        with opener.open(f"{base}/api/v1/{path}") as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.headers, answer.read()


description = json.loads(ask("openapi.json")[2])
validate(description)


def validator(schema):
    whole = {"components": description["components"], **schema}
    return Draft202012Validator(whole, format_checker=FormatChecker())


def operation_of(path):
    bare = "/api/v1/" + path.split("?")[0]
    for template, item in description["paths"].items():
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), bare):
            return item["get"]
    sys.exit(f"{path}: the description has no such path")


judged = 0
for path in sys.argv[2:]:
    status, headers, body = ask(path)
    told = operation_of(path)["responses"].get(str(status))
    if told is None:
        sys.exit(f"{path}: {status} is not described: {body[:300]}")
    kind = headers["content-type"]
    if kind not in told["content"]:
        sys.exit(f"{path}: {status} of type {kind}")
    for error in validator(told["content"][kind]["schema"]).iter_errors(json.loads(body)):
        sys.exit(f"{path}: {status}: at {list(error.absolute_path)}: {error.message[:500]}")
    judged += 1
for line in sys.stdin:
    for error in validator({"$ref": "#/components/schemas/LiveMessage"}).iter_errors(json.loads(line)):
        sys.exit(f"live: {line[:300]}: {error.message[:500]}")
    judged += 1
print(json.dumps({"judged": judged}))
