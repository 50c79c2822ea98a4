"""``magnum-backend``: one on every machine that runs workloads."""

from magnum import metrics
from magnum.backend import server
from magnum.cmd import program
from magnum.rpc import transports


def main() -> int:
    conf = program.configure("magnum-backend", "The program of Magnum that drives a machine's engines.")

    async def parts() -> list[program.Part]:
        if conf.metrics_port:
            metrics.serve(conf.metrics_host, conf.metrics_port)
        transport = transports.open(
            conf.transport_url, name=f"magnum-backend@{conf.host}", prefetch=conf.backend.prefetch
        )
        return [transport, server.Server(conf, transport)]

    return program.run(conf, "magnum-backend", parts)
