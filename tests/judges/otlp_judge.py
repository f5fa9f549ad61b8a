"""Decodes export requests with PyPI's opentelemetry-proto and prints what they say.

otlp_judge.py FILE...  one JSON line: {"spans": [...]}; fails on fields that the schema does not know
"""

import json
import sys

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def assert_known(message):
    assert len(UnknownFieldSet(message)) == 0, f"unknown fields in {message.DESCRIPTOR.full_name}"
    for _, value in message.ListFields():
        for item in [value] if isinstance(value, Message) else value if hasattr(value, "add") else []:
            assert_known(item)


def plain(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind)


def attributes(pairs):
    return {pair.key: plain(pair.value) for pair in pairs}


spans = []
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        request = ExportTraceServiceRequest.FromString(file.read())
    assert_known(request)
    for group in request.resource_spans:
        for scoped in group.scope_spans:
            for span in scoped.spans:
                spans.append({
                    "trace": span.trace_id.hex(),
                    "id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": span.kind,
                    "status": span.status.code,
                    "start": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "links": len(span.links),
                    "attributes": attributes(span.attributes),
                    "resource": attributes(group.resource.attributes),
                    "scope": scoped.scope.name,
                })
print(json.dumps({"spans": spans}), flush=True)
