"""Google's own Pub/Sub client, for gRPC; its OpenTelemetry tracing is on or off.

pubsub_peer.py publish PLAN  publishes each message by itself, or all in one call; prints {"ids": [...]}
pubsub_peer.py pull PLAN     pulls and acknowledges until "count" messages came; prints {"messages": [...]}
pubsub_peer.py stream PLAN   the same by StreamingPull; the first "nacks" deliveries are given back

PLAN is JSON: endpoint (host:port), name (of the topic or subscription, in full), and as wanted: count, nacks, batch
(publish in one call), collector (an OTLP endpoint for traces over HTTP, which turns tracing on) and messages, each
{"data": base64, "attributes": {}, "key": ordering key, "traceparent": the caller's context}.
"""

import base64
import json
import os
import queue
import sys

import grpc

verb, plan = sys.argv[1], json.loads(sys.argv[2])
os.environ["PUBSUB_EMULATOR_HOST"] = plan["endpoint"]
os.environ["OTEL_SERVICE_NAME"] = f"google-{verb}"

from google.cloud import pubsub_v1
from google.pubsub_v1.services.publisher.transports.grpc import PublisherGrpcTransport
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

tracing = "collector" in plan
provider = TracerProvider()
if tracing:
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=plan["collector"])))
    trace.set_tracer_provider(provider)


def say(**words):
    print(json.dumps(words), flush=True)


class Caller(grpc.UnaryUnaryClientInterceptor):
    """Puts the caller's context on each call, as an application does that forwards its headers."""

    traceparent = None

    def intercept_unary_unary(self, call, details, request):
        if self.traceparent:
            metadata = [*(details.metadata or ()), ("traceparent", self.traceparent)]
            details = details._replace(metadata=metadata)
        return call(details, request)


def publish():
    caller, several = Caller(), plan.get("batch", False)
    channel = grpc.intercept_channel(grpc.insecure_channel(plan["endpoint"]), caller)
    ordered = any(message.get("key") for message in plan["messages"])
    client = pubsub_v1.PublisherClient(
        pubsub_v1.types.BatchSettings(max_messages=100 if several else 1, max_latency=0.5),
        pubsub_v1.types.PublisherOptions(enable_message_ordering=ordered, enable_open_telemetry_tracing=tracing),
        transport=PublisherGrpcTransport(channel=channel),
    )
    futures = []
    for message in plan["messages"]:
        context = None
        if tracing:
            # Google's client takes the current span for the parent of its own.
            headers = {"traceparent": message["traceparent"]} if message.get("traceparent") else {}
            span = trace.get_current_span(TraceContextTextMapPropagator().extract(headers))
            context = trace.use_span(span)
            context.__enter__()
        else:
            caller.traceparent = message.get("traceparent")
        data = base64.b64decode(message["data"])
        future = client.publish(plan["name"], data, ordering_key=message.get("key", ""), **message["attributes"])
        futures.append(future)
        if not several:
            future.result(timeout=20)
        if context is not None:
            context.__exit__(None, None, None)
    say(ids=[future.result(timeout=20) for future in futures])
    client.stop()


def told(message, attempt):
    return {
        "data": base64.b64encode(message.data).decode(),
        "attributes": dict(message.attributes),
        "id": message.message_id,
        "key": message.ordering_key,
        "attempt": attempt,
    }


def pull():
    client = pubsub_v1.SubscriberClient()
    messages = []
    while len(messages) < plan["count"]:
        answer = client.pull(subscription=plan["name"], max_messages=100, timeout=20)
        received = list(answer.received_messages)
        messages += [told(one.message, one.delivery_attempt or None) for one in received]
        if received:
            client.acknowledge(subscription=plan["name"], ack_ids=[one.ack_id for one in received])
    say(messages=messages)


def stream():
    options = pubsub_v1.types.SubscriberOptions(enable_open_telemetry_tracing=tracing)
    client = pubsub_v1.SubscriberClient(subscriber_options=options)
    came = queue.Queue()
    future = client.subscribe(plan["name"], came.put)
    messages, nacks = [], plan.get("nacks", 0)
    while len(messages) < plan["count"]:
        message = came.get(timeout=30)
        messages.append(told(message, message.delivery_attempt))
        if len(messages) <= nacks:
            message.nack()
        else:
            message.ack()
    future.cancel()
    try:
        future.result(timeout=20)
    except Exception as error:
        say(ended=repr(error))
    client.close()
    say(messages=messages)


{"publish": publish, "pull": pull, "stream": stream}[verb]()
provider.shutdown()
