"""A port at which nobody listens, until somebody does."""

import concurrent.futures
import contextlib
import socket


class LatePort:
    """A port that, once it is open, passes what comes to an address and back."""

    def __init__(self, target):
        self._target = target.split(":")
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pool = concurrent.futures.ThreadPoolExecutor()
        self._sockets = [self._listener]

    def open(self):
        if len(self._sockets) == 1:
            self._sockets.append(self._listener)
            self._listener.listen()
            self._pool.submit(self._accept)

    def close(self):
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._pool.shutdown()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                inner = self._listener.accept()[0]
                outer = socket.create_connection(self._target)
                self._sockets += [inner, outer]
                self._pool.submit(self._pass, inner, outer)
                self._pool.submit(self._pass, outer, inner)

    def _pass(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
