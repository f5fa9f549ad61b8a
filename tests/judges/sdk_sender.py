"""Sends the spans of one login by the stock OpenTelemetry SDK.

sdk_sender.py grpc|http ENDPOINT COMPRESSION  makes a server, a client and a failing inner span of service sdk-shop, exports
them, and prints {"trace": ID}. COMPRESSION is none or gzip.
"""

import json
import sys

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

protocol, endpoint, compression = sys.argv[1:]
if protocol == "grpc":
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    how = grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, compression=how)
else:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    how = Compression.Gzip if compression == "gzip" else Compression.NoCompression
    exporter = OTLPSpanExporter(endpoint=endpoint, compression=how)

resource = Resource.create({"service.name": "sdk-shop", "deployment.environment.name": "staging"})
provider = TracerProvider(resource=resource)
provider.add_span_processor(BatchSpanProcessor(exporter))
tracer = provider.get_tracer("sdk-shop")
operation = {"app.operation.name": "login"}
with tracer.start_as_current_span("POST /login", kind=trace.SpanKind.SERVER, attributes=operation) as root:
    with tracer.start_as_current_span("GET", kind=trace.SpanKind.CLIENT, attributes={"server.address": "users"}) as call:
        call.add_event("retry", {"attempt": 2})
    try:
        with tracer.start_as_current_span("validate"):
            raise ValueError("no such user")
    except ValueError:
        pass
    known = format(root.get_span_context().trace_id, "032x")
provider.shutdown()
print(json.dumps({"trace": known}))
