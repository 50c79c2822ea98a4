"""``magnum-manage``: the database's version, samples of configuration and policy, what Keystone must know of Magnum."""

import argparse
import asyncio
import functools
import os
import secrets
import sys

import sqlalchemy.exc
from oslo_config import cfg

from magnum import errors
from magnum.cmd import program


def main() -> int:
    parser = program.parser("magnum-manage", "Looks after an installation of Magnum.")
    groups = parser.add_subparsers(dest="group", required=True, metavar="{db,report,adopt,remove,sample,keystone}")
    database = groups.add_parser("db", help="the database")
    database.add_argument(
        "verb", choices=["upgrade", "version", "check"],
        help="upgrade: bring it to this version's tables; version: print its revision; check: compare it with them",
    )  # fmt: skip
    groups.add_parser("report", help="what engines have and the database does not know, and the other way round")
    adopt = groups.add_parser("adopt", help="take what engines have into the database, as its owner wanted it")
    adopt.add_argument("uuids", nargs="*", metavar="UUID")
    adopt.add_argument("--all", action="store_true", help="all that report shows and that can be adopted")
    remove = groups.add_parser("remove", help="have engines remove what the database does not know")
    remove.add_argument("uuids", nargs="+", metavar="UUID")
    sample = groups.add_parser("sample", help="a sample with every option or rule, its meaning and its default")
    sample.add_argument("what", choices=["config", "policy"])
    _keystone_parser(groups)
    asked = parser.parse_args()
    if asked.group == "sample":
        return _sample(asked.what)
    if asked.group == "keystone":
        return _keystone(asked)
    conf = program.load("magnum-manage", asked.config_file)
    try:
        if asked.group == "db":
            return asyncio.run(_database(conf, asked.verb))
        return asyncio.run(_settle(conf, asked))
    except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        words = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
        print(f"magnum-manage: the database does not answer: {words[0]}", file=sys.stderr)
    except errors.MagnumError as error:
        print(f"magnum-manage: {error}", file=sys.stderr)
    return 1


def _keystone_parser(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    keystone = groups.add_parser("keystone", help="the Identity service").add_subparsers(dest="verb", required=True)
    one = keystone.add_parser(
        "bootstrap", help="have Magnum's service, endpoints and user in Keystone; may be run again",
        description="Asks as the admin that OS_AUTH_URL, OS_USERNAME, OS_PASSWORD and so on name. The user's password is "
        "taken from MAGNUM_PASSWORD; without it a new user is given one, which is printed.",
    )  # fmt: skip
    one.add_argument(
        "--public-url", required=True, help="URL of the api for clients, such as https://containers:9511/v1"
    )
    one.add_argument("--internal-url", help="the same within the cloud (the public one)")
    one.add_argument("--admin-url", help="the same for admins (the internal one)")
    one.add_argument("--region", default=os.environ.get("OS_REGION_NAME", "RegionOne"), help="region of the endpoints")
    one.add_argument("--user", default="magnum", help="name of Magnum's own user")
    one.add_argument("--project", default="service", help="its project")
    one.add_argument("--domain", default="Default", help="the domain of both, by name")
    one.add_argument("--role", default="service", help="the user's role in the project")


def _keystone(asked: argparse.Namespace) -> int:
    import msgspec
    from keystoneauth1 import exceptions, loading, session

    from magnum.clients import bootstrap

    internal = asked.internal_url or asked.public_url
    password = os.environ.get("MAGNUM_PASSWORD")
    made_up = secrets.token_urlsafe(24)
    options = argparse.ArgumentParser()
    loading.cli.register_argparse_arguments(options, [], default="password")
    loading.session.register_argparse_arguments(options)
    given = options.parse_args([])
    try:
        auth = loading.cli.load_from_argparse_arguments(given)
        verify: bool | str = given.os_cacert or not given.insecure
        asker = session.Session(auth=auth, verify=verify)
        wanted = bootstrap.Wanted(
            urls={"public": asked.public_url, "internal": internal, "admin": asked.admin_url or internal},
            region=asked.region, user=asked.user, password=password, project=asked.project, domain=asked.domain,
            role=asked.role,
        )  # fmt: skip
        done = bootstrap.run(asker, wanted)
        if done.made_user and password is None:
            bootstrap.run(asker, msgspec.structs.replace(wanted, password=made_up))
    except (errors.MagnumError, exceptions.ClientException) as error:
        print(f"magnum-manage: {error}", file=sys.stderr)
        return 1
    print("\n".join(done.lines))
    shown = made_up if done.made_user and password is None else "(as it was set)"
    print(f"""
# for magnum.conf of every magnum-api:
[keystone_authtoken]
www_authenticate_uri = {os.environ.get("OS_AUTH_URL", "")}
auth_type = password
auth_url = {os.environ.get("OS_AUTH_URL", "")}
username = {asked.user}
password = {shown}
user_domain_name = {asked.domain}
project_name = {asked.project}
project_domain_name = {asked.domain}""")
    return 0


def _sample(what: str) -> int:
    if what == "config":
        from oslo_config import generator

        conf = cfg.ConfigOpts()
        generator.register_cli_opts(conf)
        conf(["--namespace", "magnum", "--namespace", "oslo.policy", "--namespace", "keystonemiddleware.auth_token"])
        generator.generate(conf, sys.stdout)
        return 0
    from oslo_policy import generator as rules

    rules.generate_sample(["--namespace", "magnum"])
    return 0


async def _settle(conf: cfg.ConfigOpts, asked: argparse.Namespace) -> int:
    """Show what engines and database differ in, or settle it; return 0, 2 if there is a difference left to report."""
    from magnum import context
    from magnum.conductor import adoption
    from magnum.db import store

    known = store.Store(store.connect(conf.database.connection))
    try:
        found = await known.read(context.service(), adoption.differences)
        if asked.group == "report":
            print("\n".join(map(str, found)) or "nothing: engines have what the database knows")
            return 2 if found else 0
        move = adoption.adopt if asked.group == "adopt" else adoption.disown
        uuids = list(asked.uuids)
        if asked.group == "adopt" and asked.all:
            uuids += [one.orphan.uuid for one in found if not one.missing and one.orphan.memo]
        code = 0
        for uuid in dict.fromkeys(uuids):
            try:
                print(await known.write(context.service(), functools.partial(move, uuid=uuid)))
            except (errors.NotFound, errors.Conflict, errors.Invalid) as error:
                print(f"magnum-manage: {error}", file=sys.stderr)
                code = 1
        if not uuids:
            print("magnum-manage: name what is to be adopted, or --all", file=sys.stderr)
            code = 1
        return code
    finally:
        await known.close()


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
