"""Firefox as Debian packages it, driven by its own WebDriver BiDi: a page to open, a function to call in it.

Only what the tests of the live page need; the names are Playwright's, which cannot drive this Firefox.
"""

import json
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import websocket

PROGRAM = shutil.which("firefox-esr") or shutil.which("firefox")


class Page:
    def __init__(self, connection):
        self.connection, self.sent = connection, 0
        self.version = self.call("session.new", capabilities={})["capabilities"]["browserVersion"]
        self.context = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def call(self, method, **params):
        """The answer to one command; what the browser tells unasked is dropped."""
        self.sent += 1
        self.connection.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while (answer := json.loads(self.connection.recv())).get("id") != self.sent:
            pass
        assert answer["type"] == "success", answer
        return answer["result"]

    def goto(self, url):
        self.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def evaluate(self, function, argument=None):
        """What the function, JavaScript text, gives for this argument; both as JSON allows."""
        found = self.call(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({function})({json.dumps(argument)})))()",
            target={"context": self.context},
            awaitPromise=True,
        )
        assert found["type"] == "success", found["exceptionDetails"]["text"]
        return json.loads(found["result"].get("value", "null"))


@contextmanager
def firefox(folder, patience=120):
    """A Page of a headless Firefox whose profile is `folder`; patience: seconds to wait for its start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--headless", "--no-remote", "--profile", str(folder), "--remote-debugging-port", str(port)]
    process = subprocess.Popen([PROGRAM, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                address = f"ws://127.0.0.1:{port}/session"
                connection = websocket.create_connection(address, timeout=600, suppress_origin=True)
                break
            except OSError:
                if time.monotonic() > until or process.poll() is not None:
                    raise
                time.sleep(0.2)
        yield Page(connection)
    finally:
        process.terminate()
        process.wait(30)
