"""A process that makes load: gevent everywhere, from its first import on.

``resrank loadtest`` becomes this process, since what was imported before gevent's patches would block every greenlet.
"""

from gevent import monkey

monkey.patch_all()

import grpc.experimental.gevent  # noqa: E402

grpc.experimental.gevent.init_gevent()  # before any channel

import sys  # noqa: E402

from resrank.loadtest.process import main  # noqa: E402

sys.exit(main(sys.argv[1]))
