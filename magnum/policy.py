"""Who may do what: one oslo.policy rule an operation, read from ``policy.yaml``, decided once for each kind of asker.

The api asks before every operation. Decisions are kept in memory and forgotten
when the policy file changes, which is noticed within a second, without a restart.
``magnum-manage sample policy`` writes the sample from ``list_rules``.

Roles are those of secure RBAC: a *reader* reads what is its project's, a
*member* also changes it, an *admin* may do everything, in every project; another
*service* of the cloud reads in every project.
"""

import time
from typing import Any

import structlog
from oslo_config import cfg
from oslo_policy import policy as oslo

from magnum import context as contexts
from magnum import errors

LOG = structlog.get_logger(__name__)

_BASE = (
    ("admin", "role:admin", "May do everything, in every project."),
    ("service", "role:service", "Another service of the cloud: may read in every project."),
    ("project_member", "role:member and project_id:%(project_id)s", "May change what is its project's."),
    ("project_reader", "(role:reader or role:member) and project_id:%(project_id)s", "May read what is its project's."),
)
READER = "rule:admin or rule:service or rule:project_reader"
MEMBER = "rule:admin or rule:project_member"
ADMIN = "rule:admin"

_CRUD = {
    "list": (READER, "GET", "", "List"),
    "get": (READER, "GET", "/{ident}", "Show one of"),
    "create": (MEMBER, "POST", "", "Create one of"),
    "update": (MEMBER, "PATCH", "/{ident}", "Change one of"),
    "delete": (MEMBER, "DELETE", "/{ident}", "Delete one of"),
    "explain": (READER, "GET", "/{ident}/explain", "Read why one is not as wanted, of"),
    "history": (READER, "GET", "/{ident}/history", "Read what happened to one of"),
}
_NOUNS = {
    "baymodel": ("baymodels", "the bay models"), "bay": ("bays", "the bays"), "container": ("containers", "the containers"),
    "pod": ("pods", "the pods"), "service": ("services", "the services"), "rc": ("rcs", "the replication controllers"),
}  # fmt: skip

_OTHER = (
    ("container:start", MEMBER, "PUT", "/v1/containers/{ident}/start", "Start a container."),
    ("container:stop", MEMBER, "PUT", "/v1/containers/{ident}/stop", "Stop a container."),
    ("container:reboot", MEMBER, "PUT", "/v1/containers/{ident}/reboot", "Restart a container."),
    ("container:pause", MEMBER, "PUT", "/v1/containers/{ident}/pause", "Freeze a container's processes."),
    ("container:unpause", MEMBER, "PUT", "/v1/containers/{ident}/unpause", "Thaw a container's processes."),
    ("container:logs", READER, "GET", "/v1/containers/{ident}/logs", "Read or follow a container's output."),
    ("container:execute", MEMBER, "PUT", "/v1/containers/{ident}/execute", "Run a command in a container, /exec included."),
    ("container:attach", MEMBER, "GET", "/v1/containers/{ident}/attach", "Attach to a container's main process."),
    ("container:stats", READER, "GET", "/v1/containers/{ident}/stats", "Read a container's use of resources."),
    ("container:top", READER, "GET", "/v1/containers/{ident}/top", "List a container's processes."),
    ("pod:logs", READER, "GET", "/v1/pods/{ident}/logs", "Read or follow the output of a pod's container."),
    ("pod:execute", MEMBER, "PUT", "/v1/pods/{ident}/execute", "Run a command in a pod's container, /exec included."),
    ("baymodel:publish", ADMIN, "POST", "/v1/baymodels", "Make a bay model public, so that every project sees it."),
    ("container:privileged", ADMIN, "POST", "/v1/containers", "Ask for privileged mode, in a container or a pod."),
    ("container:cap_add", ADMIN, "POST", "/v1/containers", "Ask for further capabilities."),
    ("container:devices", ADMIN, "POST", "/v1/containers", "Ask for devices of the host."),
    ("container:host_namespaces", ADMIN, "POST", "/v1/containers", "Ask for the host's network, process or IPC namespace."),
    ("container:host_mounts", ADMIN, "POST", "/v1/containers", "Mount folders of the host."),
    ("certificate:get", READER, "GET", "/v1/certificates/{ident}", "Read the CA certificate of a bay."),
    ("certificate:create", MEMBER, "POST", "/v1/certificates", "Have a certificate signed by a bay's CA."),
    ("certificate:rotate", MEMBER, "PATCH", "/v1/certificates/{ident}", "Replace a bay's CA."),
    ("credential:rotate", MEMBER, "PATCH", "/v1/credentials/{ident}", "Replace a bay's credentials."),
    ("quota:list", READER, "GET", "/v1/quotas", "List the project's own limits."),
    ("quota:list_all", "rule:admin or rule:service", "GET", "/v1/quotas?all_tenants=1", "See limits and use of every project."),
    ("quota:get", READER, "GET", "/v1/quotas/{project}/{resource}", "Show a limit."),
    ("quota:create", ADMIN, "POST", "/v1/quotas", "Give a project a limit of its own."),
    ("quota:update", ADMIN, "PATCH", "/v1/quotas/{project}/{resource}", "Change a project's limit."),
    ("quota:delete", ADMIN, "DELETE", "/v1/quotas/{project}/{resource}", "Take a project's own limit back."),
    ("stats:get", READER, "GET", "/v1/stats", "Count what the project has."),
    ("mservice:list", ADMIN, "GET", "/v1/mservices", "List the programs of Magnum."),
    ("host:list", ADMIN, "GET", "/v1/hosts", "List the hosts."),
    ("host:get", ADMIN, "GET", "/v1/hosts/{ident}", "Show a host."),
    ("event:list", READER, "GET", "/v1/events", "Follow what happens to the project's objects."),
    ("operation:get", READER, "GET", "/v1/operations/{ident}", "Read the steps of a change."),
    ("operation:cancel", MEMBER, "POST", "/v1/operations/{ident}/cancel", "Give up a change in progress."),
    ("operation:retry", MEMBER, "POST", "/v1/operations/{ident}/retry", "Try a failed change again."),
    ("all_projects", "rule:admin or rule:service", "GET", "/v1/bays?all_projects=1", "See the objects of every project."),
)  # fmt: skip


def list_rules() -> list[oslo.RuleDefault]:
    """Return every rule with its default, for the enforcer, the sample and the documentation."""
    rules = [oslo.RuleDefault(name, check, text) for name, check, text in _BASE]

    def documented(name: str, check: str, method: str, path: str, text: str) -> None:
        rules.append(oslo.DocumentedRuleDefault(name, check, text, [{"method": method, "path": path}]))

    for noun, (plural, words) in _NOUNS.items():
        for operation, (check, method, path, verb) in _CRUD.items():
            documented(f"{noun}:{operation}", check, method, f"/v1/{plural}{path}", f"{verb} {words}.")
    for row in _OTHER:
        documented(*row)
    return rules


class Policy:
    """Decides by the rules of one configuration.

    ``keep`` is how many decisions are remembered; ``look_every`` the seconds
    between looks at the policy file.
    """

    def __init__(self, conf: cfg.ConfigOpts, *, keep: int = 20_000, look_every: float = 1.0) -> None:
        self._enforcer = oslo.Enforcer(conf)
        self._enforcer.register_defaults(list_rules())
        self._enforcer.load_rules()
        self._keep = keep
        self._look_every = look_every
        self._look_at = 0.0
        self._rules: Any = None
        self._decided: dict[tuple[Any, ...], bool] = {}

    def allows(self, context: contexts.Context, rule: str, target: dict[str, str] | None = None) -> bool:
        """Return whether ``context`` may do ``rule`` to ``target`` (by default: something of its own project)."""
        if time.monotonic() >= self._look_at:
            self._look()
        key = (
            rule, context.roles, context.project_id, context.user_id, context.domain_id, context.system_scope,
            tuple(sorted(target.items())) if target else None,
        )  # fmt: skip
        decided = self._decided.get(key)
        if decided is None:
            if len(self._decided) >= self._keep:
                self._decided.clear()
            decided = self._decided[key] = self._decide(context, rule, target)
        return decided

    def enforce(self, context: contexts.Context, rule: str, *, field: str | None = None) -> None:
        """Raise Forbidden unless ``context`` may do ``rule``; ``field`` is the part of the request that asks for it."""
        if not self.allows(context, rule):
            raise errors.Forbidden(f"policy does not allow {rule} to you", field=field, rule=rule)

    def _look(self) -> None:
        self._look_at = time.monotonic() + self._look_every
        try:
            self._enforcer.load_rules()
        except (ValueError, OSError, cfg.Error) as error:
            # half-written or wrong: what was read before stays in force
            LOG.error("the policy file cannot be read", reason=str(error))
            return
        # a changed file makes new Rules; the same object means nothing changed
        if self._rules is not self._enforcer.rules:
            self._rules = self._enforcer.rules
            self._decided.clear()

    def _decide(self, context: contexts.Context, rule: str, target: dict[str, str] | None) -> bool:
        credentials = {
            "roles": list(context.roles),
            "user_id": context.user_id,
            "project_id": context.project_id or None,
            "domain_id": context.domain_id,
            "system_scope": context.system_scope or None,
        }
        # no project is nobody's: it matches no rule that compares projects
        about = {"project_id": context.project_id or "none", "user_id": context.user_id, **(target or {})}
        return bool(self._enforcer.enforce(rule, about, credentials))
