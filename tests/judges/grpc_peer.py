"""A gRPC client and server of grpcio that exchange raw bytes, so that no schema is needed.

grpc_peer.py serve          prints {"port": N} and serves shop.Stock until it is told to end
grpc_peer.py call HOST:PORT calls every method and prints what came, one JSON line each
"""

import json
import sys
import threading
from concurrent import futures

import grpc


def say(**words):
    print(json.dumps(words), flush=True)


class Stock(grpc.GenericRpcHandler):
    def service(self, call):
        methods = {
            "/shop.Stock/Count": grpc.unary_unary_rpc_method_handler(self.count),
            "/shop.Stock/Refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
            "/shop.Stock/List": grpc.unary_stream_rpc_method_handler(self.list),
            "/shop.Stock/Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        return methods.get(call.method)

    def count(self, request, context):
        metadata = dict(context.invocation_metadata())
        context.set_trailing_metadata((("x-late", "yes"),))
        return json.dumps({"got": request.decode(), "traceparent": metadata.get("traceparent")}).encode()

    def refuse(self, request, context):
        context.abort(grpc.StatusCode.UNAVAILABLE, "closed for today")

    def list(self, request, context):
        for number in range(100):
            yield b"%d" % number * 100

    def chat(self, requests, context):
        for request in requests:
            yield request.upper()


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Stock(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say(port=port)
    server.wait_for_termination()


def call(target):
    metadata = (("x-operation-name", "checkout"),)
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        reply, ended = channel.unary_unary("/shop.Stock/Count").with_call(b"cups", metadata=metadata, timeout=15)
        say(count=json.loads(reply), late=dict(ended.trailing_metadata()).get("x-late"))
        try:
            channel.unary_unary("/shop.Stock/Refuse")(b"", metadata=metadata, timeout=15)
        except grpc.RpcError as error:
            say(refused=error.code().name, details=error.details())
        try:
            channel.unary_unary("/shop.Stock/Missing")(b"", metadata=metadata, timeout=15)
        except grpc.RpcError as error:
            say(missing=error.code().name)
        listed = list(channel.unary_stream("/shop.Stock/List")(b"", metadata=metadata, timeout=15))
        say(listed=len(listed), last=listed[-1].decode()[:2])
        # Each word is sent only after the answer to the one before has come.
        answered = threading.Semaphore(1)

        def words():
            for word in (b"one", b"two", b"three"):
                answered.acquire()
                yield word

        heard = []
        for reply in channel.stream_stream("/shop.Stock/Chat")(words(), metadata=metadata, timeout=15):
            heard.append(reply.decode())
            answered.release()
        say(heard=heard)


if sys.argv[1] == "serve":
    serve()
else:
    call(sys.argv[2])
