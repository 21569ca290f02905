# moto with TLS that is ended as it should be: without, OpenSSL 3 takes the end of each answer for an attack.
from werkzeug.serving import WSGIRequestHandler as H
from moto.server import main
finish = H.finish
def close(self):
    finish(self)
    try:
        self.connection.settimeout(1)
        self.connection.unwrap()
    except OSError:
        pass
H.finish = close
main()
