"""PyPI's cloudevents as a producer over HTTP and as a judge of what arrived.

cloudevents_peer.py send PLAN   posts events and prints {"sent": {"headers", "body": base64}, "status": N}
                                PLAN: url, via (a proxy), headers, mode (binary, structured, batch) and
                                events, each {"attributes": {}, "data": base64, "json": whether it is JSON}
cloudevents_peer.py judge PLAN  reads an HTTP message and prints {"events": [{"attributes", "data": base64}]}
                                PLAN: headers, body (base64)

cloudevents knows no batches: they are arrays of what it makes of one event.
"""

import base64
import json
import sys
import urllib.request

from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

BATCH = "application/cloudevents-batch+json"
STRUCTURED = "application/cloudevents+json"
verb, plan = sys.argv[1], json.loads(sys.argv[2])


def say(**words):
    print(json.dumps(words, default=str), flush=True)


def text_of(body):
    return base64.b64encode(body).decode()


def event_of(wanted):
    data = base64.b64decode(wanted["data"])
    return CloudEvent(wanted["attributes"], json.loads(data) if wanted["json"] else data)


def message_of(events):
    if plan["mode"] == "binary":
        return to_binary_event(events[0])
    if plan["mode"] == "structured":
        return to_structured_event(events[0])
    bodies = [to_structured_event(event).body for event in events]
    return HTTPMessage({"content-type": BATCH}, b"[" + b" , ".join(bodies) + b"]")


def send():
    message = message_of([event_of(wanted) for wanted in plan["events"]])
    headers = {**message.headers, **plan["headers"]}
    request = urllib.request.Request(plan["url"], data=message.body, headers=headers, method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": plan["via"]}))
    with opener.open(request, timeout=15) as answer:
        say(sent={"headers": message.headers, "body": text_of(message.body)}, status=answer.status)


def bytes_of(data):
    if data is None or isinstance(data, bytes):
        return data or b""
    return data.encode() if isinstance(data, str) else json.dumps(data).encode()


def judge():
    body = base64.b64decode(plan["body"])
    messages = [HTTPMessage(plan["headers"], body)]
    if plan["headers"]["content-type"].startswith(BATCH):
        messages = [HTTPMessage({"content-type": STRUCTURED}, json.dumps(one).encode()) for one in json.loads(body)]
    events = [from_http_event(message) for message in messages]
    say(events=[{"attributes": event.get_attributes(), "data": text_of(bytes_of(event.get_data()))} for event in events])


{"send": send, "judge": judge}[verb]()
