"""An application with the stock OpenTelemetry SDK for Python, whose sampler the scenario chooses.

sdk_app.py SAMPLER COLLECTOR  prints {"port": N}; a request names in x-next where to call and in x-outbound the
proxy to call through, and in x-then-next and x-then-outbound where the next one shall call. With x-swallow a
failure of the call is answered with 200. Its spans go to COLLECTOR, an OTLP endpoint for traces over HTTP.
"""

import json
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, DEFAULT_OFF, DEFAULT_ON

SAMPLERS = {
    "always_on": ALWAYS_ON,
    "always_off": ALWAYS_OFF,
    "parentbased_always_on": DEFAULT_ON,
    "parentbased_always_off": DEFAULT_OFF,
}

provider = TracerProvider(sampler=SAMPLERS[sys.argv[1]], resource=Resource.create({"service.name": "sdk-app"}))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=sys.argv[2])))
tracer = provider.get_tracer("sdk-app")


class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        lower = {name.lower(): value for name, value in self.headers.items()}
        context = propagate.extract(lower)
        with tracer.start_as_current_span("serve", context, trace.SpanKind.SERVER):
            with tracer.start_as_current_span("work"):
                with tracer.start_as_current_span("call", kind=trace.SpanKind.CLIENT):
                    headers = {}
                    propagate.inject(headers)
                    for name in ("x-next", "x-outbound"):
                        if name.replace("x-", "x-then-") in lower:
                            headers[name] = lower[name.replace("x-", "x-then-")]
                    if "x-swallow" in lower:
                        headers["x-swallow"] = "yes"
                    proxy = urllib.request.ProxyHandler({"http": lower["x-outbound"]})
                    request = urllib.request.Request(lower["x-next"], headers=headers)
                    try:
                        with urllib.request.build_opener(proxy).open(request, timeout=15) as answer:
                            body = answer.read()
                    except urllib.error.HTTPError as failure:
                        if "x-swallow" not in lower:
                            raise
                        failure.close()
                        body = b"never mind"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), App)
print(json.dumps({"port": server.server_port}), flush=True)
server.serve_forever()
