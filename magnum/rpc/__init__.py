"""How the programs talk: typed calls with deadlines, over a transport that is swapped whole.

One definition serves both sides: an interface is a class whose methods are
marked with ``rpc.base.call``; the server implements it, the client is derived
from it. ``local`` joins programs in one process, ``amqp`` over RabbitMQ; both
carry the same bytes. ``streams`` carries what must not travel by AMQP.
"""
