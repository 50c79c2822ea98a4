"""``magnum-manage``: the database's version, samples of configuration and policy."""

import asyncio
import sys

import sqlalchemy.exc
from oslo_config import cfg

from magnum import errors
from magnum.cmd import program


def main() -> int:
    parser = program.parser("magnum-manage", "Looks after an installation of Magnum.")
    groups = parser.add_subparsers(dest="group", required=True, metavar="{db,sample}")
    database = groups.add_parser("db", help="the database")
    database.add_argument(
        "verb", choices=["upgrade", "version", "check"],
        help="upgrade: bring it to this version's tables; version: print its revision; check: compare it with them",
    )  # fmt: skip
    sample = groups.add_parser("sample", help="a sample with every option or rule, its meaning and its default")
    sample.add_argument("what", choices=["config", "policy"])
    asked = parser.parse_args()
    if asked.group == "sample":
        return _sample(asked.what)
    conf = program.load("magnum-manage", asked.config_file)
    try:
        return asyncio.run(_database(conf, asked.verb))
    except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        words = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
        print(f"magnum-manage: the database does not answer: {words[0]}", file=sys.stderr)
    except errors.MagnumError as error:
        print(f"magnum-manage: {error}", file=sys.stderr)
    return 1


def _sample(what: str) -> int:
    if what == "config":
        from oslo_config import generator

        conf = cfg.ConfigOpts()
        generator.register_cli_opts(conf)
        conf(["--namespace", "magnum"])
        generator.generate(conf, sys.stdout)
        return 0
    from oslo_policy import generator as rules

    rules.generate_sample(["--namespace", "magnum"])
    return 0


async def _database(conf: cfg.ConfigOpts, verb: str) -> int:
    from magnum.db import schema, store

    engine = store.connect(conf.database.connection)
    try:
        found = await schema.version(engine)
        if verb == "version":
            print(found or "none")
            return 0
        if verb == "upgrade":
            if found == schema.HEAD:
                print(f"already at {schema.HEAD}")
            else:
                print(f"{found or 'empty'} -> {await schema.upgrade(engine)}")
            return 0
        if found != schema.HEAD:
            print(f"revision {found or 'none'}, {schema.HEAD} is needed: magnum-manage db upgrade")
            return 2
        lines = await schema.differences(engine)
        print("\n".join(lines) or f"as it should be ({schema.HEAD})")
        return 2 if lines else 0
    finally:
        await engine.dispose()
