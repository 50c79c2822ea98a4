"""``magnum-conductor``: the only program at the database."""

from magnum import metrics
from magnum.cmd import program
from magnum.conductor import server
from magnum.rpc import transports


def main() -> int:
    conf = program.configure("magnum-conductor", "The program of Magnum that reads and writes the database.")

    async def parts() -> list[program.Part]:
        if conf.metrics_port:
            metrics.serve(conf.metrics_host, conf.metrics_port)
        transport = transports.open(
            conf.transport_url, name=f"magnum-conductor@{conf.host}", prefetch=conf.conductor.prefetch
        )
        return [transport, server.Server(conf, transport)]

    return program.run(conf, "magnum-conductor", parts)
