"""An application that knows nothing of tracing but to copy `traceparent`, and of no proxy at all.

plain_app.py ADDRESS  prints {"ports": {"http": N, "greeting": M}}. A request names in x-next where to call. The other
port greets first, as mail servers do, and shouts back each line.
"""

import json
import socketserver
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        headers = {"traceparent": self.headers["traceparent"]}
        request = urllib.request.Request(self.headers["x-next"], headers=headers)
        without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with without_proxy.open(request, timeout=15) as answer:
            body = answer.read()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


class Greeting(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 ready\r\n")
        for line in self.rfile:
            self.wfile.write(line.upper())


http = ThreadingHTTPServer((sys.argv[1], 0), App)
greeting = socketserver.ThreadingTCPServer((sys.argv[1], 0), Greeting)
greeting.daemon_threads = True
threading.Thread(target=greeting.serve_forever, daemon=True).start()
print(json.dumps({"ports": {"http": http.server_port, "greeting": greeting.server_address[1]}}), flush=True)
http.serve_forever()
